//! Block 2 of a store: its identity, written once. If both superblocks are lost, this tells whose
//! the segments are and how to read them.

use super::{BLOCK, MAX_NAME, SEGMENTS_AT, geometry_is_sound, put, u16_at, u32_at, u64_at};

/// First bytes of the block.
const IDENTITY_MAGIC: [u8; 8] = *b"\x89AMPSID\n";
const NAME: usize = 64;

/// What never changes about a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) store_id: u64,
    pub(crate) key: u32,
    pub(crate) segment_size: u64,
    pub(crate) client_name: String,
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; BLOCK as usize];
        put(&mut b, 0, &IDENTITY_MAGIC);
        put(&mut b, 8, &self.store_id.to_le_bytes());
        put(&mut b, 16, &self.key.to_le_bytes());
        put(&mut b, 24, &self.segment_size.to_le_bytes());
        put(&mut b, 32, &SEGMENTS_AT.to_le_bytes());
        put(&mut b, 40, &(self.client_name.len() as u16).to_le_bytes());
        put(&mut b, NAME, self.client_name.as_bytes());
        let end = BLOCK as usize - 4;
        let crc = crc32fast::hash(&b[..end]);
        put(&mut b, end, &crc.to_le_bytes());
        b
    }

    /// `None`: there is none, or it is damaged.
    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        let end = BLOCK as usize - 4;
        if b.len() != BLOCK as usize
            || b[..8] != IDENTITY_MAGIC
            || crc32fast::hash(&b[..end]) != u32_at(b, end)
        {
            return None;
        }
        let (segment_size, name) = (u64_at(b, 24), u16_at(b, 40) as usize);
        let sound = name <= MAX_NAME
            && u64_at(b, 32) == SEGMENTS_AT
            && geometry_is_sound(segment_size, 1, super::MIN_SEGMENTS);
        sound.then(|| Identity {
            store_id: u64_at(b, 8),
            key: u32_at(b, 16),
            segment_size,
            client_name: String::from_utf8_lossy(&b[NAME..NAME + name]).into_owned(),
        })
    }
}
