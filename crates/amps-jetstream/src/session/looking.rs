//! Looking into the stream: when a link comes up, when a chain broke, and for messages by their
//! ids. The leader says what is there, from its last message down.

use std::time::Duration;

use amps_delivery::{Heard, LinkEnd, Now, Resume, Sink, ToSend};

use super::{Session, cannot};
use crate::api::{self, Ask, StreamInfo};
use crate::chain::Chain;
use crate::codec::{self, Msg};
use crate::config::Mode;
use crate::lookup::{Bounds, Found, Walk};

/// A look into the stream.
#[derive(Debug)]
pub(super) struct Look {
    why: Why,
    /// None: the leader was asked for the end of the stream.
    walk: Option<Walk>,
    /// There was no leader: it is asked again then.
    again_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The link comes up.
    LinkUp,
    /// The chain broke.
    Mend,
    /// Messages are asked for by their ids.
    Recall,
}

/// How long until a stream without a leader is asked again.
const AGAIN: Duration = Duration::from_millis(100);

impl Look {
    pub(super) fn link_up() -> Self {
        Look::because(Why::LinkUp)
    }

    pub(super) fn mend() -> Self {
        Look::because(Why::Mend)
    }

    fn because(why: Why) -> Self {
        Look {
            why,
            walk: None,
            again_at: None,
        }
    }
}

impl Session {
    /// Begins a look.
    pub(super) fn look(&mut self, look: Look, now: Now, out: &mut Vec<u8>) {
        self.look = Some(look);
        let stream = self.bound.stream.clone();
        self.ask(Ask::Info(&stream), now, out);
    }

    pub(super) fn look_due(&self) -> Option<Duration> {
        self.look.as_ref().and_then(|look| look.again_at)
    }

    pub(super) fn look_is_due(&self, now: Now) -> bool {
        self.look_due().is_some_and(|at| now.at >= at)
    }

    /// Asks again, from the beginning. The time for an answer goes on.
    pub(super) fn look_again(&mut self, now: Now, out: &mut Vec<u8>) {
        let until = self.until;
        if let Some(look) = &self.look {
            self.look(Look::because(look.why), now, out);
            self.until = until;
        }
    }

    /// Whether it is an answer of nobody: then it is asked again.
    fn nobody(&mut self, msg: &Msg<'_>, now: Now) -> bool {
        let nobody = msg.status().is_some() && msg.payload.is_empty();
        if let (Some(look), true) = (&mut self.look, nobody) {
            look.again_at = Some(now.at + AGAIN);
        }
        nobody
    }

    /// Asks for messages by their ids.
    pub(crate) fn recall(&mut self, messages: &[ToSend<'_>], now: Now, out: &mut Vec<u8>) {
        let times = messages.iter().filter_map(|message| {
            let envelope = message.message.envelope().ok()?;
            Some(envelope.published_at)
        });
        self.since = times.min();
        self.recalled.extend(messages.iter().map(|one| one.wire));
        if self.found.is_none() && self.look.is_none() {
            self.look(Look::because(Why::Recall), now, out);
        }
    }

    /// Answers what was asked for, if it is known; whether there was anything to say.
    pub(crate) fn tell(&mut self, sink: &mut dyn Sink) -> bool {
        let Some(found) = &self.found else {
            return false;
        };
        let any = !self.recalled.is_empty();
        for wire in self.recalled.drain(..) {
            sink.heard(match found.contains(&wire) {
                true => Heard::Found { wire },
                false => Heard::Absent { wire },
            });
        }
        any
    }

    /// Looks no further for messages by their ids: whoever asked waits for an answer. Whether it was
    /// that.
    pub(super) fn cut_recall_short(&mut self) -> bool {
        let Some(Look {
            why: Why::Recall,
            walk: Some(walk),
            ..
        }) = &mut self.look
        else {
            return false;
        };
        self.found = Some(walk.cut_short().wires);
        self.look = None;
        self.until = None;
        true
    }

    /// How the stream is set up, and where it ends.
    pub(super) fn informed_of_stream(
        &mut self,
        msg: &Msg<'_>,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        if self.nobody(msg, now) {
            return Ok(());
        }
        let stream = api::info(msg.payload);
        let stream = stream.map_err(|error| cannot("tell of the stream", &error))?;
        let Some(look) = &self.look else {
            return Ok(());
        };
        let (why, last) = (look.why, stream.state.last_seq);
        let bounds = match why {
            Why::LinkUp => {
                let chained = self.take_stream(stream)?;
                if last == 0 {
                    // It never held anything: that is known.
                    self.look = None;
                    let chain = chained.then(|| Chain::behind(0));
                    self.up(Resume::HighWater(0), chain, sink);
                    return Ok(());
                }
                if !chained {
                    self.look = None;
                    self.up(Resume::ById, None, sink);
                    return Ok(());
                }
                Bounds {
                    // Without one: all that it has are settled.
                    from: self.me.first_unsettled.unwrap_or(u64::MAX),
                    since: None,
                }
            }
            Why::Mend => {
                self.same_stream(&stream)?;
                let turned_away = self.chain.and_then(|chain| chain.turned_away());
                self.stream.state = stream.state;
                let Some(from) = turned_away else {
                    self.mended();
                    return Ok(());
                };
                Bounds { from, since: None }
            }
            Why::Recall => {
                self.same_stream(&stream)?;
                self.stream.state = stream.state;
                Bounds {
                    from: self.recalled.front().copied().unwrap_or(u64::MAX),
                    since: Some(self.since.unwrap_or(0)),
                }
            }
        };
        let walk = Walk::new(bounds, self.stream.state.first_seq, last);
        self.look = Some(Look {
            why,
            walk: Some(walk),
            again_at: None,
        });
        self.walk_on(now, out, sink)
    }

    fn same_stream(&self, stream: &StreamInfo) -> Result<(), LinkEnd> {
        match stream.created == self.stream.created {
            true => Ok(()),
            false => {
                let name = &self.bound.stream;
                let why = format!("stream {name} was deleted and made anew");
                Err(LinkEnd::Unusable(why))
            }
        }
    }

    /// What there is in a place of the stream.
    pub(super) fn seen(
        &mut self,
        place: u64,
        msg: &Msg<'_>,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        if self.nobody(msg, now) {
            return Ok(());
        }
        let stored = api::message(msg.payload);
        let stored = stored.map_err(|error| cannot("read a message of the stream", &error))?;
        if stored.as_ref().is_some_and(|stored| stored.place != place) {
            let why = "the server answered with another message of the stream";
            return Err(LinkEnd::Protocol(why.to_owned()));
        }
        if let Some(walk) = self.look.as_mut().and_then(|look| look.walk.as_mut()) {
            walk.answer(&self.ids, place, stored.as_ref());
        }
        if self
            .look
            .as_ref()
            .is_some_and(|look| look.why != Why::Recall)
        {
            self.until = Some(now.at + self.config.timeout);
        }
        self.walk_on(now, out, sink)
    }

    /// Asks for more places, or is done.
    fn walk_on(&mut self, now: Now, out: &mut Vec<u8>, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        let Some(Look {
            why,
            walk: Some(walk),
            ..
        }) = &mut self.look
        else {
            return Ok(());
        };
        while let Some(place) = walk.ask() {
            let (subject, body) = Ask::Get(&self.bound.stream, place).request(&self.api);
            let reply = format!("{}w{}.{place}", self.inbox, self.question);
            codec::publish(out, &subject, &reply, &body);
        }
        let (why, Some(found)) = (*why, walk.found()) else {
            return Ok(());
        };
        self.look = None;
        self.until = None;
        match why {
            Why::LinkUp => self.found_at_link_up(&found, sink),
            Why::Mend => {
                self.found_when_mending(&found, sink)?;
                self.mended();
                Ok(())
            }
            Why::Recall => {
                self.found = Some(found.wires);
                self.tell(sink);
                self.go_on(now, out)
            }
        }
    }

    fn found_at_link_up(&mut self, found: &Found, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        if found.foreign || found.disordered {
            if self.config.mode == Mode::Chained {
                return Err(self.not_alone());
            }
            self.because = "since somebody else publishes to it, too";
            self.up(Resume::ById, None, sink);
            return Ok(());
        }
        let resume = match found.last {
            Some(last) if !found.cut => Resume::HighWater(last),
            _ => Resume::Unknown,
        };
        let chain = Chain::behind(self.stream.state.last_seq);
        self.up(resume, Some(chain), sink);
        Ok(())
    }

    fn found_when_mending(&mut self, found: &Found, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        if found.foreign || found.disordered {
            return Err(self.not_alone());
        }
        if let (Some(wire), false) = (found.wires.last().copied(), found.cut) {
            sink.heard(Heard::Through { wire });
        }
        Ok(())
    }

    /// The chain goes on behind the last message.
    fn mended(&mut self) {
        self.look = None;
        self.until = None;
        self.chain = Some(Chain::behind(self.stream.state.last_seq));
    }

    fn not_alone(&self) -> LinkEnd {
        LinkEnd::Unusable(format!(
            "somebody else publishes to stream {}, and it has to be this publisher's alone for \
             its messages to be chained",
            self.bound.stream
        ))
    }
}
