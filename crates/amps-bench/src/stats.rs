//! Medians of rounds and quantiles of single calls.

/// The middle value; if the count is even, the lower one of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Counts of durations in nanoseconds, within 1.6 % of their value.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram {
            counts: vec![0; (64 * SUB) as usize],
            total: 0,
            max: 0,
        }
    }

    fn bucket(value: u64) -> usize {
        if value < SUB {
            return value as usize;
        }
        let shift = value.ilog2() - SUB_BITS;
        ((u64::from(shift) + 1) * SUB + (value >> shift) - SUB) as usize
    }

    fn highest_in(bucket: usize) -> u64 {
        let (row, column) = (bucket as u64 / SUB, bucket as u64 % SUB);
        match row {
            0 => column,
            _ => ((SUB + column + 1) << (row - 1)) - 1,
        }
    }

    pub(crate) fn add(&mut self, nanos: u64) {
        self.counts[Self::bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// The value that this share of all values does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::highest_in(bucket).min(self.max) as f64;
            }
        }
        self.max as f64
    }

    pub(crate) fn max(&self) -> f64 {
        self.max as f64
    }
}

/// A small generator of numbers that look random, the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_percent() {
        let mut histogram = Histogram::new();
        for value in 1..=100_000 {
            histogram.add(value);
        }
        for share in [0.001, 0.5, 0.99, 0.999, 1.0] {
            let exact = 100_000.0 * share;
            let found = histogram.quantile(share);
            assert!((found / exact - 1.0).abs() < 0.02, "{share}: {found}");
        }
        assert_eq!(histogram.max(), 100_000.0);
    }

    #[test]
    fn the_median_of_five_is_the_third() {
        assert_eq!(median(vec![9.0, 1.0, 5.0, 3.0, 7.0]), 5.0);
    }
}
