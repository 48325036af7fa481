//! For tests of this client and of programs built on its state machines: what the driver
//! keeps to itself, and defects on demand.

use crate::delivery::ToSend;

pub use amps_delivery::testkit::{Planted, plant};

/// Makes the frames of stored messages, as the driver puts them on the wire.
#[derive(Debug)]
pub struct Encoder(crate::wire::Encoder);

impl Encoder {
    /// As the builder's `publish_ids` says.
    pub fn new(publish_ids: bool) -> Self {
        Encoder(crate::wire::Encoder::new(publish_ids))
    }

    /// Appends the frame of a message.
    ///
    /// # Errors
    /// No frame can be made of it: the envelope is of another version, or the frame would be
    /// longer than its length field can say.
    pub fn encode(
        &mut self,
        to_send: &ToSend<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.encode(to_send, out)?)
    }
}
