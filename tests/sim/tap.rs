//! What goes over one link, judged by nothing but the bytes: a publisher that breaks one of
//! these laws is wrong, whatever it thinks it does.

use std::collections::BTreeMap;
use std::time::Duration;

use amps_client::protocol::{AckKind, FrameDecoder, Header, Status, Verb};

/// How much may be on the way.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub messages: u64,
    pub bytes: u64,
}

/// Listens to a link where the publisher has it: what it read, and what it writes then.
#[derive(Debug)]
pub struct Tap {
    bounds: Bounds,
    read: FrameDecoder,
    written: FrameDecoder,
    phase: Phase,
    /// What the logon was told; nothing at or below it is news to the server.
    figure: u64,
    last: u64,
    /// Handed to the link and not answered, written or not: by number.
    open: BTreeMap<u64, Open>,
    /// Bytes come back at their mean size: they are exact until some do and others stay.
    bytes_are_exact: bool,
    /// A message had to wait for an answer to another.
    pub at_bound: bool,
    /// Messages that had to go out above a figure.
    pub above_figure: u64,
}

#[derive(Debug)]
struct Open {
    id: Option<String>,
    bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing may be sent but a logon.
    Silent,
    LoggingOn {
        id: String,
    },
    LoggedOn,
    Refused,
}

impl Tap {
    pub fn new(bounds: Bounds) -> Self {
        Tap {
            bounds,
            read: FrameDecoder::new(),
            written: FrameDecoder::new(),
            phase: Phase::Silent,
            figure: 0,
            last: 0,
            open: BTreeMap::new(),
            bytes_are_exact: true,
            at_bound: false,
            above_figure: 0,
        }
    }

    pub fn reads(&mut self, bytes: &[u8]) {
        self.read.push(bytes);
        while let Ok(Some(frame)) = self.read.next_frame() {
            // What has no header ends the link; what comes behind it is not read.
            let Ok((header, _)) = Header::parse(&frame) else {
                return;
            };
            if header.verb == Some(Verb::Ack) {
                self.ack(&header);
            }
        }
    }

    fn ack(&mut self, header: &Header<'_>) {
        let id = header.command_id.as_deref();
        match &self.phase {
            Phase::LoggingOn { id: logon } if id == Some(logon) => {
                if header.ack_kind() != Some(AckKind::Processed) {
                    return;
                }
                match header.status {
                    Some(Status::Success) => {
                        self.phase = Phase::LoggedOn;
                        self.figure = header.sequence.unwrap_or(0);
                    }
                    Some(Status::Retry) => self.phase = Phase::Silent,
                    _ => self.phase = Phase::Refused,
                }
            }
            Phase::LoggedOn => self.answer(header, id),
            _ => {}
        }
    }

    fn answer(&mut self, header: &Header<'_>, id: Option<&str>) {
        if !is_about_publishes(header) {
            return;
        }
        let before = self.open.len();
        let named = |open: &Open| id.is_some() && open.id.as_deref() == id;
        match (header.ack_kind(), header.status) {
            (Some(AckKind::Persisted), Some(Status::Success)) => match header.sequence {
                Some(figure) => self.open.retain(|wire, _| *wire > figure),
                None => self.open.retain(|_, open| !named(open)),
            },
            (_, Some(Status::Failure)) => {
                let figure = header.sequence;
                self.open
                    .retain(|wire, open| Some(*wire) != figure && !named(open));
            }
            _ => {}
        }
        if self.open.len() < before {
            self.bytes_are_exact = self.open.is_empty();
        }
    }

    /// An operator settled a message: nobody will answer it, and its room is free.
    pub fn gave_up(&mut self, wire: u64) {
        if self.open.remove(&wire).is_some() {
            self.bytes_are_exact = self.open.is_empty();
        }
    }

    pub fn writes(&mut self, now: Duration, bytes: &[u8]) {
        self.written.push(bytes);
        while let Some(frame) = self.written.next_frame().expect("clients send frames") {
            let (header, body) = Header::parse(&frame).expect("clients send headers");
            match header.verb.as_ref().expect("a command") {
                Verb::Logon => {
                    assert_eq!(self.phase, Phase::Silent, "a logon nobody asked for");
                    let id = header.command_id.as_deref().expect("it wants an answer");
                    self.phase = Phase::LoggingOn { id: id.to_owned() };
                }
                Verb::Publish | Verb::DeltaPublish | Verb::SowDelete => {
                    self.publish(now, &header, body.len() as u64);
                }
                verb => assert_eq!(self.phase, Phase::LoggedOn, "{verb:?} before the logon"),
            }
        }
    }

    fn publish(&mut self, now: Duration, header: &Header<'_>, bytes: u64) {
        let wire = header.sequence.expect("stored messages have numbers");
        assert_eq!(
            self.phase,
            Phase::LoggedOn,
            "{wire} goes out at {now:?} on a link that is not logged on"
        );
        assert!(
            header.acks.contains(AckKind::Persisted),
            "{wire} asks for no ack"
        );
        assert!(
            wire > self.figure,
            "{wire} goes out, and the server said at the logon that it is beyond {}",
            self.figure
        );
        assert!(
            wire > self.last,
            "{wire} goes out behind {}: the server drops it for ever",
            self.last
        );
        self.last = wire;
        self.above_figure += u64::from(self.figure > 0);
        // One that was answered before it was written has no place any more.
        if let Some(open) = self.open.get_mut(&wire) {
            open.id = header.command_id.as_deref().map(str::to_owned);
            assert_eq!(open.bytes, bytes, "another message goes out as {wire}");
        }
    }

    /// The link took a message: that it is not written yet frees no place.
    pub fn takes(&mut self, wire: u64, bytes: u64) {
        let count = self.open.len() as u64;
        assert!(
            count < self.bounds.messages,
            "{wire} goes out while {count} have no answer"
        );
        let under_way: u64 = self.open.values().map(|open| open.bytes).sum();
        assert!(
            !self.bytes_are_exact || under_way < self.bounds.bytes,
            "{wire} goes out while {under_way} bytes have no answer"
        );
        self.open.insert(wire, Open { id: None, bytes });
        self.at_bound |= count + 1 == self.bounds.messages;
    }
}

/// Whether an ack can be about a publish at all: it names no subscription, and no command but
/// by a number.
pub fn is_about_publishes(header: &Header<'_>) -> bool {
    let id = header.command_id.as_deref();
    header.sub_id.is_none()
        && header.query_id.is_none()
        && id.is_none_or(|id| id.parse::<u64>().is_ok())
}
