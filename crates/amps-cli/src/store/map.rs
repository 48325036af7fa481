//! `amps store map`: the ring of segments, drawn.

use std::path::Path;

use amps_store::inspect::{SegmentHeaderState, SegmentMap};
use serde_json::{Map, Value};

use super::{damage, damaged_exit, look};
use crate::failure::{Exit, Failure};
use crate::output::{Output, object};

/// Cells on one side of the ring.
const SIDE: usize = 32;

/// Segments that are listed one by one below the ring.
const LISTED: usize = 64;

/// Draws the ring and lists its segments.
pub(super) fn map(file: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(file)?;
    out.knows(damage(&seen));
    let segments = seen.map();
    let info = seen.info();
    if out.is_json() {
        for segment in &segments {
            out.object(segment_object(segment))?;
        }
        out.object(object! {
            "event": "report",
            "segments": segments.len(),
            "segments_at_most": info.cap_segments,
            "free": info.free_segments,
            "segment_bytes": info.segment_size,
            "live_bytes": info.live_bytes,
            "charged_bytes": info.charged_bytes,
            "limit_bytes": info.limit_bytes,
            "moving": info.moving,
        })?;
        out.flush()?;
        return Ok(damaged_exit(&seen));
    }
    for line in ring(&segments) {
        out.line(&line)?;
    }
    out.line("")?;
    out.line(
        "@ appended here   # full of needed bytes   + half   - few   . settled, not yet free   \
         _ free   ! set aside   x damaged header",
    )?;
    out.line(&format!(
        "{} segment(s) of {} bytes, {} free, at most {}; {} of {} bytes are taken, charges \
         included",
        segments.len(),
        info.segment_size,
        info.free_segments,
        info.cap_segments,
        info.charged_bytes,
        info.limit_bytes
    ))?;
    out.line("")?;
    let mut in_use: Vec<&SegmentMap> = segments.iter().filter(|s| notable(s)).collect();
    in_use.sort_by_key(|s| (s.position.is_none(), s.position, s.segment));
    for segment in in_use.iter().take(LISTED) {
        out.line(&segment_line(segment))?;
    }
    if in_use.len() > LISTED {
        out.line(&format!(
            "… and {} more; all of them: amps store map --json {}",
            in_use.len() - LISTED,
            file.display()
        ))?;
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

fn notable(segment: &SegmentMap) -> bool {
    segment.position.is_some()
        || segment.set_aside > 0
        || segment.header == SegmentHeaderState::Damaged
}

/// The segments as a ring: from left to right in the upper row, and back in the lower one. If
/// segments share a cell, the most remarkable one is shown.
fn ring(segments: &[SegmentMap]) -> Vec<String> {
    let share = segments.len().div_ceil(2 * SIDE).max(1);
    let cells: Vec<char> = segments
        .chunks(share)
        .map(|group| {
            group
                .iter()
                .map(cell)
                .min_by_key(|c| rank(*c))
                .unwrap_or(' ')
        })
        .collect();
    let upper = cells.len().div_ceil(2);
    let row = |cells: &mut dyn Iterator<Item = &char>| {
        let mut row = String::new();
        for cell in cells {
            row.push(*cell);
            row.push(' ');
        }
        format!("{row:<width$}", width = 2 * upper)
    };
    let top = row(&mut cells[..upper].iter());
    let lower = &cells[upper..];
    let mut back: Vec<char> = vec![' '; upper - lower.len()];
    back.extend(lower.iter().rev());
    let bottom = row(&mut back.iter());
    let edge = "─".repeat(2 * upper + 1);
    let mut lines = vec![
        format!("╭{edge}╮"),
        format!("│ {top}│ →"),
        format!("│ {bottom}│ ←"),
        format!("╰{edge}╯"),
    ];
    if share > 1 {
        lines.push(format!("a cell stands for {share} segments"));
    }
    lines
}

fn cell(segment: &SegmentMap) -> char {
    match segment {
        s if s.header == SegmentHeaderState::Damaged => 'x',
        s if s.is_tail => '@',
        s if s.set_aside > 0 => '!',
        s if s.position.is_none() => '_',
        s if s.live == 0 => '.',
        s if s.live * 4 < s.bytes => '-',
        s if s.live * 4 < s.bytes * 3 => '+',
        _ => '#',
    }
}

fn rank(cell: char) -> usize {
    "x@!#+-._".find(cell).unwrap_or(usize::MAX)
}

fn header(segment: &SegmentMap) -> &'static str {
    match segment.header {
        SegmentHeaderState::Free => "free",
        SegmentHeaderState::Used { .. } => "used",
        SegmentHeaderState::Damaged => "damaged",
    }
}

fn segment_object(segment: &SegmentMap) -> Map<String, Value> {
    object! {
        "segment": segment.segment,
        "offset": segment.offset,
        "bytes": segment.bytes,
        "header": header(segment),
        "position": segment.position,
        "first_ordinal": segment.first_ordinal,
        "last_ordinal": segment.last_ordinal,
        "written_bytes": segment.written,
        "live_bytes": segment.live,
        "tail": segment.is_tail,
        "set_aside": segment.set_aside,
    }
}

fn segment_line(segment: &SegmentMap) -> String {
    let mut line = format!(
        "{}  segment {:<5} at {:<10}",
        cell(segment),
        segment.segment,
        segment.offset
    );
    match segment.position {
        Some(position) => line.push_str(&format!(
            "  place {position:<5} ordinals {}..{}  written {}  needed {}",
            segment.first_ordinal, segment.last_ordinal, segment.written, segment.live
        )),
        None => line.push_str("  none of the log"),
    }
    if segment.header == SegmentHeaderState::Damaged {
        line.push_str("  header damaged");
    }
    if segment.set_aside > 0 {
        line.push_str(&format!("  {} record(s) set aside", segment.set_aside));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarkable_cells_come_first() {
        let order: Vec<usize> = "x@!#+-._".chars().map(rank).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
