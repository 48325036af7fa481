//! A stored message as the frame that goes out.

use amps_store::{EnvelopeError, Operation};

use crate::delivery::ToSend;
use crate::protocol::{AckKinds, Command, FrameError, Publish};

/// A stored message that no frame can be made of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Appends the frame of a stored message to `out`, copying its bytes once. `persisted` is
/// asked for on every stored command (`amps-publish-semantics.md` §3).
pub(crate) fn encode(
    to_send: &ToSend<'_>,
    publish_ids: bool,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let message = to_send.message;
    let envelope = message.envelope()?;
    let mut digits = [0; 20];
    let command_id = publish_ids.then(|| decimal(to_send.sequence, &mut digits));
    match envelope.operation {
        Operation::Publish | Operation::DeltaPublish => Publish {
            delta: envelope.operation == Operation::DeltaPublish,
            command_id,
            expiration: envelope.expiration,
            options: envelope.options.as_deref(),
            correlation_id: envelope.correlation_id.as_deref(),
            sow_key: envelope.sow_key.as_deref(),
            ..Publish::stored(&envelope.topic, to_send.wire, message.payload())
        }
        .encode(out)?,
        operation => Command {
            command_id,
            sequence: Some(to_send.wire),
            acks: AckKinds::PERSISTED,
            ..delete(
                operation,
                &envelope.topic,
                envelope.selector.as_deref(),
                envelope.options.as_deref(),
                message.payload(),
            )
        }
        .encode(out)?,
    }
    Ok(())
}

/// A `sow_delete` in the form its operation names.
pub(crate) fn delete<'a>(
    operation: Operation,
    topic: &'a str,
    selector: Option<&'a str>,
    options: Option<&'a str>,
    data: &'a [u8],
) -> Command<'a> {
    let selector = selector.unwrap_or_default();
    let command = match operation {
        Operation::SowDeleteByFilter => Command::sow_delete_by_filter(topic, selector),
        Operation::SowDeleteByKeys => Command::sow_delete_by_keys(topic, selector),
        _ => Command::sow_delete_by_data(topic, data),
    };
    Command { options, ..command }
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    // Digits are always UTF-8.
    std::str::from_utf8(&digits[at..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_covers_the_whole_range() {
        for number in [0, 7, 10, 12_345, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string());
        }
    }
}
