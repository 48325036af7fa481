//! The words of the demo, and its verdict.

use crate::failure::{Exit, Failure};
use crate::output::{Output, object};

/// Tells the story, checks it, and remembers whether everything came out as it must.
pub(super) struct Story {
    out: Output,
    wrong: Vec<String>,
}

impl Story {
    /// # Errors
    /// There is no standard output.
    pub(super) fn new(json: bool) -> Result<Self, Failure> {
        Ok(Story {
            out: Output::stdout(json)?,
            wrong: Vec::new(),
        })
    }

    /// Begins a step.
    ///
    /// # Errors
    /// The reader went away.
    pub(super) fn step(&mut self, text: &str) -> Result<(), Failure> {
        if !self.out.is_json() {
            self.out.line("")?;
        }
        self.say("step", text)
    }

    /// Says what happens within a step.
    ///
    /// # Errors
    /// The reader went away.
    pub(super) fn tell(&mut self, text: &str) -> Result<(), Failure> {
        match self.out.is_json() {
            true => self.say("told", text),
            false => self.say("told", &format!("   {text}")),
        }
    }

    /// Says whether a claim holds, and what was seen.
    ///
    /// # Errors
    /// The reader went away.
    pub(super) fn check(&mut self, claim: &str, so: bool, seen: &str) -> Result<(), Failure> {
        if !so {
            self.wrong.push(claim.to_owned());
        }
        if self.out.is_json() {
            self.out
                .object(object! { "event": "check", "claim": claim, "ok": so, "seen": seen })?;
            return self.out.flush();
        }
        let verdict = if so { "ok    " } else { "NOT SO" };
        self.say("check", &format!("   {verdict}  {claim} ({seen})"))
    }

    /// The verdict.
    ///
    /// # Errors
    /// Something did not come out as it must.
    pub(super) fn end(mut self) -> Result<Exit, Failure> {
        if self.out.is_json() {
            self.out
                .object(object! { "event": "report", "ok": self.wrong.is_empty() })?;
            self.out.flush()?;
        }
        if self.wrong.is_empty() {
            return Ok(Exit::Ok);
        }
        Err(Failure::other(format!(
            "the demo failed: it is not so that {}",
            self.wrong.join("; ")
        )))
    }

    fn say(&mut self, event: &str, text: &str) -> Result<(), Failure> {
        match self.out.is_json() {
            true => self.out.object(object! { "event": event, "text": text })?,
            false => self.out.line(text)?,
        }
        self.out.flush()
    }
}
