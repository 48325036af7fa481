//! Whether the store is filling up: a high and a low watermark, so that a backlog that hovers at
//! one of them is reported once.

/// Where the backlog stands between its two watermarks.
pub(crate) struct Watermark {
    /// Low and high, in percent of the limit; `None`: nothing is ever reported.
    percent: Option<(u8, u8)>,
    above: bool,
    /// Crossed by this many bytes or more.
    rise_at: u64,
    /// Crossed by fewer than this many bytes.
    fall_below: u64,
}

impl Watermark {
    pub(crate) fn new(percent: Option<(u8, u8)>, limit: u64) -> Self {
        let mut watermark = Watermark {
            percent,
            above: false,
            rise_at: 0,
            fall_below: 0,
        };
        watermark.limit(limit);
        watermark
    }

    /// Sets the limit in bytes.
    pub(crate) fn limit(&mut self, limit: u64) {
        let bytes = |percent: u8| (u128::from(limit) * u128::from(percent) / 100) as u64;
        (self.rise_at, self.fall_below) = match self.percent {
            None => (u64::MAX, 0),
            Some((_, high)) if !self.above => (bytes(high), 0),
            Some((low, _)) => (u64::MAX, bytes(low) + 1),
        };
    }

    /// Whether this many bytes are on the other side.
    #[inline]
    pub(crate) fn is_crossed(&self, live: u64) -> bool {
        live >= self.rise_at || live < self.fall_below
    }

    /// Crosses to the other side if this many bytes are there; returns whether it did.
    pub(crate) fn cross(&mut self, live: u64, limit: u64) -> bool {
        let crossed = self.is_crossed(live);
        if crossed {
            self.above = !self.above;
            self.limit(limit);
        }
        crossed
    }

    /// Whether the high watermark was the last one crossed.
    pub(crate) fn is_above(&self) -> bool {
        self.above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_watermark_is_crossed_once_and_the_other_one_comes_first() {
        let mut watermark = Watermark::new(Some((50, 80)), 1000);
        let crossed: Vec<(u64, bool)> = [0, 799, 800, 900, 501, 800, 500, 499, 0, 799, 800]
            .into_iter()
            .filter(|live| watermark.cross(*live, 1000))
            .zip([true, false, true])
            .collect();
        assert_eq!(crossed, [(800, true), (500, false), (800, true)]);
        assert!(watermark.is_above());
    }

    #[test]
    fn a_limit_that_falls_crosses_the_watermark() {
        let mut watermark = Watermark::new(Some((50, 80)), 1000);
        assert!(!watermark.cross(500, 1000));
        watermark.limit(600);
        assert!(watermark.is_crossed(500) && watermark.cross(500, 600));
        watermark.limit(1000);
        assert!(watermark.cross(500, 1000));
    }

    #[test]
    fn turned_off_it_is_never_crossed() {
        let mut watermark = Watermark::new(None, 1000);
        assert!(
            ![0, 500, 1000, u64::MAX - 1]
                .iter()
                .any(|b| watermark.cross(*b, 1000))
        );
        // The largest limit there can be.
        let watermark = Watermark::new(Some((99, 100)), u64::MAX);
        assert!(!watermark.is_crossed(u64::MAX - 1));
    }
}
