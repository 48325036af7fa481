//! Frames: a four-byte big-endian length, then that many bytes (`docs/protocol.md` §1).

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of the length field in front of every frame.
pub const LENGTH_BYTES: usize = 4;

/// The largest inbound frame accepted unless told otherwise: 256 MiB, above the ~200 MB
/// that server transports take for one command (`docs/protocol.md` §1).
pub const DEFAULT_MAX_FRAME: usize = 256 * 1024 * 1024;

const READ_CHUNK: usize = 64 * 1024;

/// What is wrong with a stream of frames. None of it can be repaired on the same
/// connection: without a trusted length there is no next frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announces a frame larger than this side accepts.
    #[error("the peer announces a frame of {length} bytes, {max} are allowed")]
    TooLarge {
        /// Announced length, in bytes.
        length: usize,
        /// The cap in force, in bytes.
        max: usize,
    },
    /// A frame to be sent does not fit the length field.
    #[error("a frame of {length} bytes cannot be sent, its length must fit 32 bits")]
    Unsendable {
        /// Length of the refused frame, in bytes.
        length: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, {missing} bytes or more are missing")]
    Truncated {
        /// Bytes that were still to come; at least this many.
        missing: usize,
    },
}

/// Cuts a stream of bytes into frames.
///
/// The buffer grows with the bytes that were received, never by what a length field
/// announces, so a peer must send what it wants remembered. Once [`FrameDecoder::next_frame`]
/// failed it keeps failing: drop the connection.
pub struct FrameDecoder {
    buffer: BytesMut,
    max: usize,
}

amps_store::debug_with_excerpt!(FrameDecoder: FrameDecoder, [max], buffer);

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder::new()
    }
}

impl FrameDecoder {
    /// A decoder that accepts frames up to [`DEFAULT_MAX_FRAME`].
    pub fn new() -> Self {
        FrameDecoder::with_max_frame(DEFAULT_MAX_FRAME)
    }

    /// A decoder that accepts frames up to `max` bytes, the length field not counted.
    pub fn with_max_frame(max: usize) -> Self {
        FrameDecoder {
            buffer: BytesMut::new(),
            max,
        }
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer itself, with room for a useful read, so that a socket can read straight
    /// into it. Append only.
    pub fn read_buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < READ_CHUNK / 8 {
            self.buffer.reserve(READ_CHUNK);
        }
        &mut self.buffer
    }

    /// The next complete frame without its length field, or `None` until more bytes came.
    ///
    /// The frame shares the read buffer; copy what is kept for long, since a small slice
    /// keeps its whole chunk alive.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.announced() else {
            return Ok(None);
        };
        if length > self.max {
            return Err(FrameError::TooLarge {
                length,
                max: self.max,
            });
        }
        if self.buffer.len() - LENGTH_BYTES < length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Bytes received that no frame has consumed yet.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Judges the end of the stream.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it came inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.announced() {
            _ if self.buffer.is_empty() => Ok(()),
            None => Err(FrameError::Truncated {
                missing: LENGTH_BYTES - self.buffer.len(),
            }),
            Some(length) => {
                let held = self.buffer.len() - LENGTH_BYTES;
                match length.saturating_sub(held) {
                    0 => Ok(()),
                    missing => Err(FrameError::Truncated { missing }),
                }
            }
        }
    }

    fn announced(&self) -> Option<usize> {
        let field = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_be_bytes(*field) as usize)
    }
}

/// Appends one frame to `out`: `write` appends the frame's content, its length is patched
/// in front afterwards, so nothing is allocated but what `out` lacks.
///
/// # Errors
/// [`FrameError::Unsendable`]; `out` is then as it was.
pub fn append_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    write(out);
    let length = out.len() - start - LENGTH_BYTES;
    let Ok(field) = u32::try_from(length) else {
        out.truncate(start);
        return Err(FrameError::Unsendable { length });
    };
    out[start..start + LENGTH_BYTES].copy_from_slice(&field.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(contents: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for content in contents {
            append_frame(&mut out, |out| out.extend_from_slice(content)).unwrap();
        }
        out
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let stream = framed(&[b"one", b"", b"three33"]);
        for step in 1..=stream.len() {
            let mut decoder = FrameDecoder::new();
            let mut frames = Vec::new();
            for part in stream.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame.to_vec());
                }
            }
            assert_eq!(frames, [&b"one"[..], b"", b"three33"], "in steps of {step}");
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn a_huge_announcement_is_refused_and_reserves_nothing() {
        let mut decoder = FrameDecoder::with_max_frame(1000);
        decoder.push(&u32::MAX.to_be_bytes());
        let refused = Err(FrameError::TooLarge {
            length: u32::MAX as usize,
            max: 1000,
        });
        assert_eq!(decoder.next_frame(), refused);
        decoder.push(b"more");
        assert_eq!(decoder.next_frame(), refused, "it stays refused");

        let mut patient = FrameDecoder::new();
        patient.push(&(DEFAULT_MAX_FRAME as u32).to_be_bytes());
        patient.push(b"x");
        assert_eq!(patient.next_frame(), Ok(None));
        assert!(patient.read_buffer().capacity() <= 2 * READ_CHUNK);
    }

    #[test]
    fn the_end_inside_a_frame_is_told() {
        let stream = framed(&[b"abc"]);
        let missing = [
            None,
            Some(3),
            Some(2),
            Some(1),
            Some(3),
            Some(2),
            Some(1),
            None,
        ];
        for (cut, missing) in missing.into_iter().enumerate() {
            let mut decoder = FrameDecoder::new();
            decoder.push(&stream[..cut]);
            let expected = missing.map_or(Ok(()), |missing| Err(FrameError::Truncated { missing }));
            assert_eq!(decoder.finish(), expected, "cut at {cut}");
        }
    }
}
