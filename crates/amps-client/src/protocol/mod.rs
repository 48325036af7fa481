//! The AMPS protocol, sans I/O: bytes to frames, frames to headers, commands to bytes.
//!
//! Facts come from `docs/protocol.md`, cited by section. Nothing here knows sockets,
//! clocks or tasks, and no bytes from a peer can make it panic or allocate more than was
//! received. The same codec serves the client and the sandbox server.
//!
//! ```
//! use amps_client::protocol::{FrameDecoder, Header, Publish, Verb};
//!
//! let mut out = Vec::new();
//! Publish::stored("orders", 1, br#"{"id":1}"#).encode(&mut out)?;
//!
//! let mut decoder = FrameDecoder::new();
//! decoder.push(&out);
//! let frame = decoder.next_frame()?.expect("a whole frame was pushed");
//! let (header, body) = Header::parse(&frame)?;
//! assert_eq!(header.verb, Some(Verb::Publish));
//! assert_eq!(header.sequence, Some(1));
//! assert_eq!(body, br#"{"id":1}"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ack;
mod answer;
mod command;
mod frame;
mod header;
mod reader;
mod writer;

pub use ack::{AckKind, AckKinds, Status};
pub(crate) use amps_delivery::cut;
pub use amps_delivery::{Reason, ReasonKind};
pub use answer::{Ack, LogonAck, Outbound, SowEntry, encode_group, encode_heartbeat, encode_sow};
pub use command::{Command, Publish};
pub use frame::{DEFAULT_MAX_FRAME, FrameDecoder, FrameError, LENGTH_BYTES, append_frame};
pub use header::{DEFAULT_MAX_HEADER, Header, SowRecord, SowRecords, Verb};
pub use reader::{HeaderError, HeaderErrorKind};
