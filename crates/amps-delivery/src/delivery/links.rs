//! What the history of links says: attempts per message, stalls, short lives.

use std::collections::VecDeque;
use std::time::Duration;

use super::Config;

/// Spans kept for counting attempts; the oldest two are merged beyond that.
const SPANS: usize = 64;

#[derive(Debug)]
pub(super) struct Links {
    stall_after: u32,
    short: Duration,
    /// Sequences handed over on each link, the newest last.
    spans: VecDeque<Span>,
    logged_on_at: Option<Duration>,
    last_was_short: bool,
    /// The first unsettled message at the end of the latest links, and how many.
    head: Option<(u64, u32)>,
    suspect: bool,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    through: u64,
    links: u32,
}

impl Links {
    pub(super) fn new(config: &Config) -> Self {
        Links {
            stall_after: config.stall_after.max(1),
            short: config.short_link,
            spans: VecDeque::new(),
            logged_on_at: None,
            last_was_short: false,
            head: None,
            suspect: false,
        }
    }

    pub(super) fn logged_on(&mut self, now: Duration) {
        self.logged_on_at = Some(now);
    }

    /// Messages from `cursor` on go out on a new link.
    pub(super) fn started(&mut self, cursor: u64) {
        self.spans.retain(|span| span.through >= cursor);
        if self.spans.len() == SPANS
            && let (Some(oldest), Some(next)) = (self.spans.pop_front(), self.spans.front_mut())
        {
            next.from = next.from.max(oldest.from);
            next.through = next.through.min(oldest.through);
            next.links = next.links.saturating_add(oldest.links);
        }
        self.spans.push_back(Span {
            from: cursor,
            through: cursor.saturating_sub(1),
            links: 1,
        });
    }

    pub(super) fn handed_over(&mut self, sequence: u64) {
        if let Some(span) = self.spans.back_mut() {
            span.through = sequence;
        }
    }

    /// How often this run handed the message to a transport.
    pub(super) fn attempts(&self, sequence: u64) -> u32 {
        self.spans
            .iter()
            .filter(|span| (span.from..=span.through).contains(&sequence))
            .fold(0, |sum, span| sum.saturating_add(span.links))
    }

    /// Takes in the end of a link; the stalled message and its count of links, if so.
    pub(super) fn lost(
        &mut self,
        now: Duration,
        live: bool,
        first_unsettled: Option<u64>,
    ) -> Option<(u64, u32)> {
        if let Some(since) = self.logged_on_at.take() {
            self.last_was_short = now.saturating_sub(since) < self.short;
            self.suspect &= self.last_was_short;
        }
        let sent = self.spans.back().map_or(0, |span| span.through);
        let Some(first) = first_unsettled else {
            self.head = None;
            return None;
        };
        if !live || first > sent {
            return None;
        }
        let links = match self.head {
            Some((head, links)) if head == first => links.saturating_add(1),
            _ => 1,
        };
        self.head = Some((first, links));
        (links >= self.stall_after).then_some((first, links))
    }

    pub(super) fn last_was_short(&self) -> bool {
        self.last_was_short
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.head
            .is_some_and(|(_, links)| links >= self.stall_after)
    }

    /// Progress ends a stall.
    pub(super) fn settled(&mut self, first_unsettled: Option<u64>) {
        if self
            .head
            .is_some_and(|(head, _)| first_unsettled.is_none_or(|first| first > head))
        {
            self.head = None;
        }
    }

    /// The name seems to be shared, or the server's figure cannot be ours.
    pub(super) fn suspect(&mut self) {
        self.suspect = true;
    }

    pub(super) fn clear_suspicion(&mut self) {
        self.suspect = false;
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }
}
