//! The payload rule of `docs/torture.md`: all arithmetic wraps on u64, words are little-endian.

/// Payloads of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payloads {
    seed: u64,
    run: u64,
    min_len: u64,
    max_len: u64,
}

impl Payloads {
    /// Lengths from `min_len` to `max_len`, both included.
    pub(crate) fn new(seed: u64, run: u64, min_len: u64, max_len: u64) -> Self {
        Payloads {
            seed,
            run,
            min_len,
            max_len,
        }
    }

    /// The payload of `sequence`: word 0 is the run, word 1 the sequence, the rest a
    /// progression that no other (seed, run, sequence) shares; the last word is cut to fit.
    pub(crate) fn of(&self, sequence: u64) -> Vec<u8> {
        let spread = (self.max_len - self.min_len).wrapping_add(1);
        let drawn = mix(mix(self.seed ^ mix(sequence)) ^ self.run);
        let len = self.min_len + if spread == 0 { drawn } else { drawn % spread };
        let base = mix(self.seed ^ mix(self.run) ^ mix(sequence ^ 0xA5A5_A5A5));
        let mut bytes = Vec::with_capacity(len as usize + 8);
        for i in 0..len.div_ceil(8) {
            let word = match i {
                0 => self.run,
                1 => sequence,
                _ => base.wrapping_add(i.wrapping_mul(0xD134_2543_DE82_EF95)),
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(len as usize);
        bytes
    }
}

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of SplitMix64 for seed 0 are published with the algorithm.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn words_stand_where_the_contract_says() {
        let payload = Payloads::new(7, 3, 40, 40).of(11);
        assert_eq!(payload.len(), 40);
        let word = |i: usize| u64::from_le_bytes(payload[i * 8..i * 8 + 8].try_into().unwrap());
        assert_eq!((word(0), word(1)), (3, 11));
        assert_eq!(word(3).wrapping_sub(word(2)), 0xD134_2543_DE82_EF95);
        let cut = Payloads::new(7, 3, 37, 37).of(11);
        assert_eq!(cut, payload[..37]);
        let lengths: Vec<usize> = (1..2000)
            .map(|s| Payloads::new(1, 1, 16, 20).of(s).len())
            .collect();
        assert_eq!(
            (lengths.iter().min(), lengths.iter().max()),
            (Some(&16), Some(&20))
        );
    }
}
