//! What happened in a set of runs.

/// Totals over runs, so that a set of seeds can show that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub acked: u64,
    pub marked: u64,
    pub duplicates: u64,
    pub found: u64,
    pub refused: u64,
    pub unsendable: u64,
    pub overdue: u64,
    pub turned_away: u64,
    pub behind_others: u64,
    pub stopped: u64,
    pub holes: u64,
    pub gaps: u64,
    pub rebases: u64,
    pub strangers: u64,
    pub power_cuts: u64,
    pub doubts: u64,
}

impl Seen {
    /// What a set of seeds must have seen, or its judgements mean nothing.
    pub fn worth_judging(&self) -> [(&'static str, u64); 16] {
        [
            ("an ack", self.acked),
            ("a message below a mark", self.marked),
            ("a duplicate", self.duplicates),
            ("a message that was found", self.found),
            ("a refusal", self.refused),
            ("a message that no server takes", self.unsendable),
            ("an overdue ack", self.overdue),
            ("a message turned away", self.turned_away),
            ("one turned away for another", self.behind_others),
            ("a line that stopped", self.stopped),
            ("a hole", self.holes),
            ("a server that is behind", self.gaps),
            ("a rebase", self.rebases),
            ("a stranger", self.strangers),
            ("a power cut", self.power_cuts),
            ("a refusal of what may be stored", self.doubts),
        ]
    }
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.acked += other.acked;
        self.marked += other.marked;
        self.duplicates += other.duplicates;
        self.found += other.found;
        self.refused += other.refused;
        self.unsendable += other.unsendable;
        self.overdue += other.overdue;
        self.turned_away += other.turned_away;
        self.behind_others += other.behind_others;
        self.stopped += other.stopped;
        self.holes += other.holes;
        self.gaps += other.gaps;
        self.rebases += other.rebases;
        self.strangers += other.strangers;
        self.power_cuts += other.power_cuts;
        self.doubts += other.doubts;
    }
}
