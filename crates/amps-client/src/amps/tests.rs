//! A link over a pipe, polled by hand: no runtime, and the clock is an argument.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use amps_delivery::{
    Capabilities, Heard, Link, LinkEnd, Now, Progress, Queue, Resume, Room, Sink, ToSend, Up,
};
use amps_store::{Batch, Envelope};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::oneshot;

use super::desk::{Ask, Behind, Desk};
use super::link::{AmpsLink, Making};
use super::*;
use crate::chooser::{Authenticating, Authenticator, Credentials};
use crate::delivery::{AckWish, Acks, Delivery, Input};
use crate::error::CommandError;
use crate::protocol::{Ack, AckKind, DEFAULT_MAX_FRAME, FrameDecoder, Header, LogonAck, Status};
use crate::requests::{Request, Subscribe};
use crate::uri::Uri;

const SECOND: Duration = Duration::from_secs(1);

/// What was heard, as it shows itself.
#[derive(Default)]
struct Ears(Vec<String>);

impl Sink for Ears {
    fn heard(&mut self, heard: Heard<'_>) {
        self.0.push(format!("{heard:?}"));
    }
}

struct Rig {
    link: Option<AmpsLink>,
    peer: DuplexStream,
    read: FrameDecoder,
    desk: Arc<Desk>,
    slot: Arc<Slot>,
    now: Now,
    ears: Ears,
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn rig(authenticator: Option<Arc<dyn Authenticator>>) -> Rig {
    let config = SessionConfig {
        client_name: "me".into(),
        logon_options: None,
        logon_correlation: None,
        heartbeat: None,
        logon_timeout: SECOND * 5,
        command_timeout: SECOND * 5,
        stored: true,
        publish_ids: false,
    };
    let (desk, slot) = Desk::new(Session::new(config));
    let (stream, peer) = tokio::io::duplex(256 << 10);
    let link = AmpsLink::new(Making {
        stream: Box::new(stream),
        server: Server {
            uri: "tcp://u:p@somewhere:1/amps/json".parse().unwrap(),
            authenticator,
        },
        slot: slot.clone(),
        publish_ids: false,
        max_frame: DEFAULT_MAX_FRAME,
        logon_timeout: SECOND * 5,
        sampled: None,
    });
    Rig {
        link: Some(link.unwrap()),
        peer,
        read: FrameDecoder::new(),
        desk,
        slot,
        now: Now::default(),
        ears: Ears::default(),
    }
}

impl Rig {
    fn link(&mut self) -> &mut AmpsLink {
        self.link.as_mut().unwrap()
    }

    /// Polls until there is nothing to do.
    fn poll(&mut self) -> Result<Progress, LinkEnd> {
        let mut all = Progress::default();
        let (now, link) = (self.now, self.link.as_mut().unwrap());
        while let Poll::Ready(polled) = link.poll(&mut context(), now, &mut self.ears) {
            let progress = polled?;
            all.read |= progress.read;
            all.wrote |= progress.wrote;
        }
        Ok(all)
    }

    fn says(&mut self, bytes: &[u8]) {
        let written = Pin::new(&mut self.peer).poll_write(&mut context(), bytes);
        assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes.len()));
    }

    /// The verbs and command ids of what the server has read.
    fn hears(&mut self) -> Vec<(String, Option<String>)> {
        let mut bytes = vec![0; 1 << 20];
        let mut frames = Vec::new();
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut self.peer).poll_read(&mut context(), &mut buffer);
            if !read.is_ready() || buffer.filled().is_empty() {
                return frames;
            }
            self.read.push(buffer.filled());
            while let Some(frame) = self.read.next_frame().unwrap() {
                let (header, _) = Header::parse(&frame).unwrap();
                let id = header.command_id.as_deref().map(str::to_owned);
                frames.push((header.verb.as_ref().unwrap().as_str().to_owned(), id));
            }
        }
    }

    fn log_on(&mut self) {
        self.poll().unwrap();
        let logon = self.hears();
        assert_eq!(logon.len(), 1, "{logon:?}");
        assert_eq!(logon[0].0, "logon");
        self.says(&accepted(logon[0].1.as_deref().unwrap(), 7));
        self.poll().unwrap();
    }

    fn send(&mut self, sequence: u64, payload: &[u8]) {
        let mut batch = Batch::new(1, usize::MAX);
        let envelope = Envelope::publish("orders");
        assert!(batch.push(sequence, &envelope, payload).unwrap());
        let message = batch.get(0).unwrap();
        let now = self.now;
        let to_send = ToSend {
            sequence,
            wire: sequence,
            again: false,
            ack: AckWish::Kept,
            message,
        };
        self.link().send(now, &to_send).unwrap();
    }
}

fn accepted(id: &str, figure: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let ack = LogonAck {
        command_id: Some(id),
        sequence: Some(figure),
        bookmark: None,
        client_name: None,
        reason: None,
        version: Some("5.3"),
    };
    ack.encode(&mut out).unwrap();
    out
}

/// What is heard of a logon with this figure: all that AMPS is good for.
fn up_with(figure: u64) -> String {
    let (resume, capabilities) = (Resume::HighWater(figure), &Capabilities::LOGGED);
    format!(
        "{:?}",
        Heard::Up(Up {
            resume,
            capabilities,
        })
    )
}

fn persisted(figure: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Ack::persisted(figure).encode(&mut out).unwrap();
    out
}

#[test]
fn there_is_no_room_before_the_logon_is_accepted() {
    let mut rig = rig(None);
    assert_eq!(rig.link().room(), Room::NONE);
    rig.poll().unwrap();
    assert_eq!(rig.link().room(), Room::NONE);
    rig.log_on_answered();
    assert_eq!(rig.ears.0, [up_with(7)]);
    assert!(!rig.link().room().is_none());
}

impl Rig {
    fn log_on_answered(&mut self) {
        let logon = self.hears();
        let id = logon[0].1.clone().unwrap();
        self.says(&accepted(&id, 7));
        self.poll().unwrap();
    }
}

#[test]
fn messages_go_out_within_the_room_and_commands_beside_them() {
    let mut rig = rig(None);
    rig.log_on();
    let (reply, _answer) = oneshot::channel();
    let ask = Ask::Command {
        request: Request::new("flush").into(),
        until: SECOND,
        behind: None,
        reply,
    };
    rig.desk.try_ask(ask).unwrap();
    let mut sent = 0;
    let mut bytes = 0;
    while !rig.link().room().is_none() {
        let room = rig.link().room().bytes;
        sent += 1;
        bytes += 1000;
        rig.send(sent, &[b'x'; 1000]);
        assert!(room >= 16 << 10 || room > rig.link().room().bytes);
    }
    assert!((60_000..90_000).contains(&bytes), "{bytes}");
    rig.poll().unwrap();
    let heard = rig.hears();
    assert_eq!(heard.len() as u64, sent + 1);
    assert!(heard.iter().any(|(verb, _)| verb == "flush"));
    assert!(!rig.link().room().is_none(), "it was written");
}

#[test]
fn a_command_behind_messages_goes_out_when_the_link_has_taken_them() {
    let mut rig = rig(None);
    rig.log_on();
    let queue = Arc::new(Queue::new("me", 10));
    let mut delivery = Delivery::without_store(queue.clone(), Default::default());
    let logon = Input::LoggedOn {
        resume: Resume::Unknown,
        acks: Acks::Figures,
    };
    delivery.handle(queue.as_ref(), rig.now, logon);
    let flush = |rig: &Rig, behind| {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Command {
            request: Request::new("flush").into(),
            until: SECOND,
            behind: Some(behind),
            reply,
        };
        rig.desk.try_ask(ask).unwrap();
        answer
    };
    let publish = || {
        let envelope = Envelope::publish("orders");
        queue.push(&envelope, b"1", false).unwrap();
    };
    publish();
    let before = Behind::all(&queue);
    publish();
    let mut answers = vec![flush(&rig, Behind::all(&queue)), flush(&rig, before)];
    rig.poll().unwrap();
    assert!(rig.hears().is_empty(), "nothing was handed over");
    let (now, mut batch, link) = (rig.now, Batch::default(), rig.link.as_mut().unwrap());
    let handed = delivery.hand_over(queue.as_ref(), now, Room::ANY, &mut batch, |message| {
        link.send(now, message)
    });
    assert_eq!(handed.unwrap(), 2);
    rig.poll().unwrap();
    let heard = rig.hears();
    let verbs: Vec<&str> = heard.iter().map(|(verb, _)| &verb[..]).collect();
    assert_eq!(verbs, ["p", "p", "flush", "flush"]);
    // One more, which waits. The link ends before the answers: they are told, and the next link
    // finds everything.
    publish();
    answers.push(flush(&rig, Behind::all(&queue)));
    rig.poll().unwrap();
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
    rig.link = None;
    for answer in &mut answers {
        let told = answer.try_recv();
        assert!(matches!(told, Ok(Err(CommandError::Disconnected))));
    }
    assert!(rig.slot.take().is_some());
}

#[test]
fn a_command_that_waited_too_long_is_not_sent_and_without_a_link_none_is_taken() {
    let mut rig = rig(None);
    let ask = || {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Command {
            request: Request::new("flush").into(),
            until: SECOND,
            behind: None,
            reply,
        };
        (ask, answer)
    };
    let early = rig.desk.try_ask(ask().0);
    assert!(matches!(early, Err(CommandError::NotConnected)));
    rig.log_on();
    let (late, mut answer) = ask();
    rig.desk.try_ask(late).unwrap();
    rig.now.at = SECOND;
    rig.poll().unwrap();
    assert!(matches!(answer.try_recv(), Ok(Err(CommandError::Timeout))));
    assert!(rig.hears().is_empty());
    let (left, mut answer) = ask();
    rig.desk.try_ask(left).unwrap();
    rig.link = None;
    assert!(matches!(
        answer.try_recv(),
        Ok(Err(CommandError::NotConnected))
    ));
}

#[test]
fn who_waits_for_a_subscription_learns_that_nobody_can_be_asked() {
    let mut rig = rig(None);
    rig.link = None;
    let place = |rig: &Rig| {
        let (placing, placed) = oneshot::channel();
        let spec = Subscribe::topic("t");
        rig.desk.try_ask(Ask::Subscribe { spec, placing }).unwrap();
        placed
    };
    let mut first = place(&rig);
    rig.slot.serve(None);
    assert!(first.try_recv().is_err(), "it waits for a server");
    let mut second = place(&rig);
    rig.slot.serve(Some(&CommandError::NotConnected));
    for placed in [&mut first, &mut second] {
        let answer = placed.try_recv().unwrap();
        assert!(matches!(answer, Err(CommandError::NotConnected)));
    }
}

/// Answers when it is let.
#[derive(Default)]
struct Slow(AtomicBool);

impl Slow {
    fn answer(&self) -> Authenticating<'_> {
        Box::pin(std::future::poll_fn(|_| {
            match self.0.load(Ordering::Relaxed) {
                true => Poll::Ready(Ok(Credentials::default())),
                false => Poll::Pending,
            }
        }))
    }
}

impl Authenticator for Slow {
    fn authenticate<'a>(&'a self, _: &'a Uri, _: Credentials) -> Authenticating<'a> {
        self.answer()
    }

    fn answer<'a>(&'a self, _: &'a Uri, _: Credentials) -> Authenticating<'a> {
        self.answer()
    }
}

#[test]
fn an_authenticator_is_waited_for_no_longer_than_a_server() {
    let slow = Arc::new(Slow::default());
    let mut rig = rig(Some(slow));
    rig.poll().unwrap();
    assert!(rig.hears().is_empty());
    rig.now.at = SECOND * 4;
    rig.poll().unwrap();
    assert_eq!(rig.link().deadline(), Some(SECOND * 5));
    rig.now.at = SECOND * 5;
    let end = rig.poll().unwrap_err();
    assert!(matches!(end, LinkEnd::Authenticator(_)), "{end}");
}

#[test]
fn what_comes_behind_a_challenge_waits_for_the_answer_to_it() {
    let slow = Arc::new(Slow(AtomicBool::new(true)));
    let mut rig = rig(Some(slow.clone()));
    rig.poll().unwrap();
    let logon = rig.hears();
    let id = logon[0].1.clone().unwrap();
    slow.0.store(false, Ordering::Relaxed);
    let mut retry = Vec::new();
    Ack {
        command_id: Some(&id),
        ..Ack::new(AckKind::Processed, Status::Retry)
    }
    .encode(&mut retry)
    .unwrap();
    retry.extend(persisted(3));
    rig.says(&retry);
    rig.poll().unwrap();
    assert!(
        rig.ears.0.is_empty(),
        "an ack was looked at: {:?}",
        rig.ears.0
    );
    assert!(rig.hears().is_empty());
    slow.0.store(true, Ordering::Relaxed);
    rig.poll().unwrap();
    rig.log_on_answered();
    assert_eq!(rig.ears.0, [up_with(7)]);
}

#[test]
fn the_end_of_the_stream_is_told_with_what_came_before_it() {
    let mut rig = rig(None);
    rig.log_on();
    rig.send(1, b"1");
    rig.poll().unwrap();
    let ack = persisted(1);
    rig.says(&ack);
    rig.says(&ack[..3]);
    rig.peer = tokio::io::duplex(1).0;
    let end = rig.poll().unwrap_err();
    assert_eq!(end, LinkEnd::Truncated);
    assert_eq!(rig.ears.0.len(), 2, "{:?}", rig.ears.0);
}
