//! How a server says things. What it says stays true, but no document promises how often it says
//! it, in which words, and what else it says; so the servers here try all of that.

use amps_client::protocol::{
    Ack, AckKind, FrameDecoder, Header, LogonAck, Status, Verb, append_frame, encode_heartbeat,
};

use super::Rng;

/// What one server does and another does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    /// Answers a duplicate with what became of the message, instead of dropping it without a
    /// word.
    pub acks_duplicates: bool,
    /// Acks of every kind and status, with any id, that say nothing of any message.
    pub chatter: bool,
    /// Says things again, and lower figures after higher ones.
    pub repeats: bool,
    /// A refusal is an ack of any kind.
    pub any_kind: bool,
    /// A refusal names its message by the command id alone.
    pub ids_only: bool,
    /// A refusal comes before the successes that precede it, which the documents do not rule out
    /// (`docs/protocol.md` §11).
    pub failure_first: bool,
    /// Refuses a logon now and then.
    pub refuses_logons: bool,
    /// Says less at a logon than it knows.
    pub lower_logons: bool,
    /// Ends a link now and then with bytes that are no frame.
    pub breaks_off: bool,
}

/// How often each of these happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    pub duplicates: u64,
    pub chatter: u64,
    pub nameless: u64,
    pub repeats: u64,
    pub other_kinds: u64,
    pub ids_only: u64,
    pub refused_logons: u64,
    pub lower_logons: u64,
    pub broken_off: u64,
}

impl std::ops::AddAssign for Said {
    fn add_assign(&mut self, other: Said) {
        self.duplicates += other.duplicates;
        self.chatter += other.chatter;
        self.nameless += other.nameless;
        self.repeats += other.repeats;
        self.other_kinds += other.other_kinds;
        self.ids_only += other.ids_only;
        self.refused_logons += other.refused_logons;
        self.lower_logons += other.lower_logons;
        self.broken_off += other.broken_off;
    }
}

/// What happens to the link after what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    GoOn,
    Close,
}

const KINDS: [AckKind; 6] = [
    AckKind::Received,
    AckKind::Parsed,
    AckKind::Processed,
    AckKind::Persisted,
    AckKind::Completed,
    AckKind::Stats,
];

impl Manners {
    /// Rewords what the rules say, in these manners.
    pub fn put(
        &self,
        bytes: &[u8],
        logged_on: bool,
        rng: &mut Rng,
        said: &mut Said,
    ) -> (Vec<u8>, Then) {
        if *self == Manners::default() {
            return (bytes.to_vec(), Then::GoOn);
        }
        let mut frames = split(bytes);
        if self.failure_first {
            failures_first(&mut frames);
        }
        let mut out = Vec::new();
        let is_logon = |frame: &Vec<u8>| parse(frame).client_name.is_some();
        let mut logged_on = logged_on && !frames.iter().any(is_logon);
        for frame in &frames {
            let header = parse(frame);
            if self.chatter && rng.one_in(3) {
                self.chat(&mut out, logged_on, rng, said);
            }
            let is_logon = header.client_name.is_some();
            if is_logon && self.refuses_logons && rng.one_in(4) {
                said.refused_logons += 1;
                let refused = Ack {
                    command_id: header.command_id.as_deref(),
                    reason: Some("come back later"),
                    ..Ack::new(AckKind::Processed, Status::Failure)
                };
                encode(&refused, &mut out);
                // Now and then the refused client has to leave by itself.
                let then = match rng.one_in(2) {
                    true => Then::Close,
                    false => Then::GoOn,
                };
                return (out, then);
            }
            logged_on |= is_logon;
            match (header.ack_kind(), header.status) {
                _ if is_logon => self.logon(frame, &header, &mut out, rng, said),
                (Some(AckKind::Persisted), Some(Status::Success)) => {
                    self.success(frame, &header, &mut out, rng, said);
                }
                (Some(kind), Some(Status::Failure)) if kind_of_message(kind, &header) => {
                    self.refusal(&header, kind, &mut out, rng, said);
                }
                _ => whole(frame, &mut out),
            }
        }
        if logged_on && self.breaks_off && !frames.is_empty() && rng.one_in(40) {
            said.broken_off += 1;
            append_frame(&mut out, |out| out.extend_from_slice(b"oops")).expect("small");
            return (out, Then::Close);
        }
        (out, Then::GoOn)
    }

    fn logon(
        &self,
        frame: &[u8],
        header: &Header<'_>,
        out: &mut Vec<u8>,
        rng: &mut Rng,
        said: &mut Said,
    ) {
        match header.sequence.filter(|s| *s > 0) {
            Some(figure) if self.lower_logons && rng.one_in(3) => {
                said.lower_logons += 1;
                let ack = LogonAck {
                    command_id: header.command_id.as_deref(),
                    sequence: Some(rng.below(figure)),
                    bookmark: None,
                    client_name: header.client_name.as_deref(),
                    reason: None,
                    version: None,
                };
                ack.encode(out).expect("small");
            }
            _ => whole(frame, out),
        }
    }

    fn success(
        &self,
        frame: &[u8],
        header: &Header<'_>,
        out: &mut Vec<u8>,
        rng: &mut Rng,
        said: &mut Said,
    ) {
        whole(frame, out);
        if let Some(figure) = header.sequence.filter(|_| self.repeats && rng.one_in(2)) {
            said.repeats += 1;
            let again = match rng.one_in(2) {
                true => figure,
                false => 1 + rng.below(figure),
            };
            encode(&Ack::persisted(again), out);
        }
    }

    fn refusal(
        &self,
        header: &Header<'_>,
        kind: AckKind,
        out: &mut Vec<u8>,
        rng: &mut Rng,
        said: &mut Said,
    ) {
        let ids_only = self.ids_only && header.command_id.is_some();
        said.ids_only += u64::from(ids_only);
        let times = 1 + u64::from(self.repeats && rng.one_in(2));
        said.repeats += times - 1;
        for _ in 0..times {
            let other = self.any_kind && rng.one_in(2);
            said.other_kinds += u64::from(other);
            let kind = match other {
                true => KINDS[rng.below(6) as usize],
                false => kind,
            };
            let refused = Ack {
                kind,
                ..Ack::refused(
                    header.sequence.filter(|_| !ids_only),
                    header.command_id.as_deref(),
                    header.reason_text.as_deref().unwrap_or_default(),
                )
            };
            encode(&refused, out);
        }
    }

    /// Something that is about no message.
    fn chat(&self, out: &mut Vec<u8>, logged_on: bool, rng: &mut Rng, said: &mut Said) {
        said.chatter += 1;
        let figure = 1 + rng.below(40);
        let plain = figure;
        let figure = Some(figure);
        let number = rng.below(40).to_string();
        // Ids in the session's own form that it never gave out, or that are not waited for any
        // more; while it logs on, none that could be that of the logon.
        let own = match logged_on {
            true => format!("c{}", rng.below(6)),
            false => format!("c{}", 1000 + rng.below(6)),
        };
        let later = KINDS[rng.below(6) as usize];
        let ids = [None, Some("zz9"), Some(number.as_str()), Some(own.as_str())];
        let id = ids[rng.below(4) as usize];
        match rng.below(8) {
            // Any kind except the one that settles.
            0 | 1 if later != AckKind::Persisted => encode(
                &Ack {
                    command_id: id,
                    sequence: figure,
                    ..Ack::new(later, Status::Success)
                },
                out,
            ),
            // Persisted, with a status that nobody knows.
            2 => encode(
                &Ack {
                    command_id: id,
                    sequence: figure,
                    ..Ack::new(AckKind::Persisted, Status::Unknown)
                },
                out,
            ),
            3 => {
                let text = format!(r#"{{"c":"ack","a":"persisted","s":{plain}}}"#);
                append_frame(out, |out| out.extend_from_slice(text.as_bytes())).expect("small");
            }
            // About a subscription, or with an id that no publish has, or about a command of the
            // session's.
            4 => encode(
                &Ack {
                    sub_id: Some("s77").filter(|_| figure < Some(20)),
                    command_id: Some("zz9").filter(|_| figure >= Some(20)),
                    sequence: figure,
                    ..Ack::new(AckKind::Persisted, Status::Success)
                },
                out,
            ),
            5 => {
                let status = match rng.one_in(2) {
                    true => Status::Success,
                    false => Status::Failure,
                };
                encode(
                    &Ack {
                        command_id: Some(&format!("c{}", 1000 + rng.below(6))),
                        sequence: figure,
                        ..Ack::new(later, status)
                    },
                    out,
                );
            }
            // A refusal of it is unknown what.
            6 if logged_on && rng.one_in(4) => {
                said.nameless += 1;
                encode(&Ack::refused(None, None, "whoever it was"), out);
            }
            6 => {
                said.nameless += u64::from(logged_on);
                encode(
                    &Ack::refused(figure, Some("zz9"), "of another command"),
                    out,
                );
            }
            _ if logged_on => encode_heartbeat(out).expect("small"),
            _ => {}
        }
    }
}

/// Whether a failure is about a message: the rules say other failures of these kinds only to a
/// logon, which has no number.
fn kind_of_message(kind: AckKind, header: &Header<'_>) -> bool {
    let own = header
        .command_id
        .as_deref()
        .is_some_and(|id| id.starts_with('c'));
    !own && (kind == AckKind::Persisted || header.command_id.is_some())
}

fn parse(frame: &[u8]) -> Header<'_> {
    Header::parse(frame).expect("frames of the server").0
}

fn encode(ack: &Ack<'_>, out: &mut Vec<u8>) {
    ack.encode(out).expect("small");
}

fn whole(frame: &[u8], out: &mut Vec<u8>) {
    append_frame(out, |out| out.extend_from_slice(frame)).expect("small");
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("frames of the server") {
        frames.push(frame.to_vec());
    }
    frames
}

/// Moves each persisted failure before the success that directly precedes it.
fn failures_first(frames: &mut [Vec<u8>]) {
    let kind = |frame: &[u8]| {
        let header = parse(frame);
        let persisted =
            header.verb == Some(Verb::Ack) && header.ack_kind() == Some(AckKind::Persisted);
        header.status.filter(|_| persisted)
    };
    for i in 1..frames.len() {
        let swap = kind(&frames[i]) == Some(Status::Failure)
            && kind(&frames[i - 1]) == Some(Status::Success);
        if swap {
            frames.swap(i - 1, i);
        }
    }
}
