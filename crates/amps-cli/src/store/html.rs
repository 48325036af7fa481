//! `amps store info --html`: a report as one page that needs nothing else. Everything from the
//! store is escaped: topics, payloads and reasons come from outside.

use std::f64::consts::TAU;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use amps_store::inspect::{Filter, Inspection, SegmentHeaderState, SegmentMap};
use serde_json::{Map, Value};

use super::{new_file, severity, shown, unreadable};
use crate::body;
use crate::failure::Failure;
use crate::show;
use crate::terminal::{self, is_obeyed};

/// How many messages, and how many rejections, are shown.
const SHOWN: usize = 200;

/// Characters of a payload in a table.
const IN_TABLE: usize = 160;

/// Arcs of the ring; if there are more segments, neighbours share one.
const ARCS: usize = 512;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}\
th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #8884}\
td.n{text-align:right}code{font-size:.9em;overflow-wrap:anywhere}\
.ok{color:#2a8f4f}.damage{color:#d33}.notice{color:#b80}svg{width:16rem;float:right}";

/// Writes the report to a new file.
///
/// # Errors
/// The store cannot be read, or the file is there, or it cannot be written.
pub(super) fn write(
    to: &Path,
    mode: Option<u32>,
    seen: &Inspection,
    facts: &Map<String, Value>,
) -> Result<(), Failure> {
    let page = page(seen, facts)?;
    let source = seen
        .path()
        .metadata()
        .map_err(|e| unreadable(seen.path(), &e))?;
    let mut file = new_file(to, mode, Some(&source))?;
    file.write_all(page.as_bytes())
        .map_err(|e| Failure::system(&e, format!("cannot write {}: {e}", to.display())))
}

fn page(seen: &Inspection, facts: &Map<String, Value>) -> Result<String, Failure> {
    let wrong = |e: std::io::Error| unreadable(seen.path(), &e);
    let verified = seen.verify().map_err(wrong)?;
    let rejections = seen.rejections().map_err(wrong)?;
    let name = escaped(&seen.path().display().to_string());
    let (class, verdict) = match verified.is_sound() {
        true => ("ok", "sound"),
        false => ("damage", "DAMAGED"),
    };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>{name}</title><style>{STYLE}</style></head>\n<body>\n{}\
         <h1>{name}</h1>\n<p class=\"{class}\">{verdict}: {} bytes, {} records and {} checksums \
         were read.</p>\n",
        ring(&seen.map()),
        verified.bytes,
        verified.records + verified.other_records,
        verified.checksums
    );
    let mut table = Table::new(&mut page, "Store", &["", ""]);
    for (fact, value) in facts {
        table.row(&[Cell::Text(fact), Cell::Text(&shown(value))]);
    }
    table.end();
    if !verified.problems.is_empty() {
        let mut table = Table::new(&mut page, "Findings", &["", "offset", "bytes", "what"]);
        for problem in &verified.problems {
            table.row(&[
                Cell::Class(severity(problem.severity), severity(problem.severity)),
                Cell::Number(problem.offset),
                Cell::Number(problem.bytes),
                Cell::Text(&problem.text),
            ]);
        }
        table.end();
    }
    if !rejections.is_empty() {
        let columns = ["sequence", "rejected at", "reason", "topic", "message"];
        let mut table = Table::new(&mut page, "Rejections that wait", &columns);
        for rejection in rejections.iter().take(SHOWN) {
            let original = seen.get(rejection.sequence).map_err(wrong)?;
            let envelope = original.as_ref().and_then(|o| o.envelope.as_ref());
            let payload = original.as_ref().map(|o| body::short(&o.payload, IN_TABLE));
            table.row(&[
                Cell::Number(rejection.sequence),
                Cell::Text(&show::time(rejection.at)),
                Cell::Text(&rejection.reason),
                Cell::Text(envelope.map_or("", |e| &e.topic)),
                Cell::Code(payload.as_deref().unwrap_or("(gone)")),
            ]);
        }
        table.end();
        more(&mut page, rejections.len() as u64);
    }
    let columns = ["sequence", "published at", "topic", "bytes", "message"];
    let mut table = Table::new(&mut page, "Unsettled messages", &columns);
    for message in seen.messages(Filter::new()).take(SHOWN) {
        let message = message.map_err(wrong)?;
        let envelope = message.envelope.as_ref();
        let published = envelope.map_or_else(String::new, |e| show::time(e.published_at));
        table.row(&[
            Cell::Number(message.sequence),
            Cell::Text(&published),
            Cell::Text(envelope.map_or("", |e| &e.topic)),
            Cell::Number(message.payload.len() as u64),
            Cell::Code(&body::short(&message.payload, IN_TABLE)),
        ]);
    }
    table.end();
    more(&mut page, seen.bounds().unsettled);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// Says that a table was cut.
fn more(page: &mut String, count: u64) {
    if count > SHOWN as u64 {
        page.push_str(&format!("<p>The first {SHOWN} of {count}.</p>\n"));
    }
}

enum Cell<'a> {
    Text(&'a str),
    Code(&'a str),
    Number(u64),
    Class(&'a str, &'a str),
}

struct Table<'a> {
    page: &'a mut String,
}

impl<'a> Table<'a> {
    fn new(page: &'a mut String, title: &str, columns: &[&str]) -> Self {
        page.push_str(&format!("<h2>{}</h2>\n<table>", escaped(title)));
        if columns.iter().any(|c| !c.is_empty()) {
            page.push_str("<tr>");
            for column in columns {
                page.push_str(&format!("<th>{}</th>", escaped(column)));
            }
            page.push_str("</tr>");
        }
        page.push('\n');
        Table { page }
    }

    fn row(&mut self, cells: &[Cell<'_>]) {
        self.page.push_str("<tr>");
        for cell in cells {
            self.page.push_str(&match cell {
                Cell::Text(text) => format!("<td>{}</td>", escaped(text)),
                Cell::Code(text) => format!("<td><code>{}</code></td>", escaped(text)),
                Cell::Number(n) => format!("<td class=\"n\">{n}</td>"),
                Cell::Class(class, text) => {
                    format!("<td class=\"{}\">{}</td>", escaped(class), escaped(text))
                }
            });
        }
        self.page.push_str("</tr>\n");
    }

    fn end(self) {
        self.page.push_str("</table>\n");
    }
}

/// The ring of segments as a picture: each filled as far as it is needed.
fn ring(segments: &[SegmentMap]) -> String {
    let share = segments.len().div_ceil(ARCS).max(1);
    let arcs: Vec<&[SegmentMap]> = segments.chunks(share).collect();
    let mut svg = String::from("<svg viewBox=\"-1.1 -1.1 2.2 2.2\" role=\"img\">\n");
    let step = TAU / arcs.len().max(1) as f64;
    for (at, group) in arcs.iter().enumerate() {
        let (from, to) = (at as f64 * step, (at as f64 + 0.92) * step);
        let (bytes, live) = group
            .iter()
            .fold((0, 0), |(bytes, live), s| (bytes + s.bytes, live + s.live));
        let used = group.iter().any(|s| s.position.is_some());
        let (colour, opacity) = if group
            .iter()
            .any(|s| s.header == SegmentHeaderState::Damaged)
        {
            ("#d33", 1.0)
        } else if group.iter().any(|s| s.is_tail) {
            ("#27c", 1.0)
        } else if used {
            ("#2a8f4f", 0.35 + 0.65 * live as f64 / bytes.max(1) as f64)
        } else {
            ("#888", 0.2)
        };
        let point = |angle: f64, radius: f64| {
            let (sin, cos) = angle.sin_cos();
            format!("{:.4} {:.4}", radius * sin, -radius * cos)
        };
        let large = u8::from(to - from > TAU / 2.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<path fill=\"{colour}\" fill-opacity=\"{opacity:.2}\" d=\"M{} A1 1 0 {large} 1 {} \
             L{} A.72 .72 0 {large} 0 {} Z\"><title>segment {} at offset {}: {live} of {bytes} \
             bytes needed</title></path>",
            point(from, 1.0),
            point(to, 1.0),
            point(to, 0.72),
            point(from, 0.72),
            group.first().map_or(0, |s| s.segment),
            group.first().map_or(0, |s| s.offset),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text that no browser takes for markup, in an element or in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if is_obeyed(c) => {
                out.push_str(&terminal::text(c.encode_utf8(&mut [0; 4]).as_bytes()))
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_place() {
        assert_eq!(
            escaped("</td><script src='x'>\"&\0"),
            "&lt;/td&gt;&lt;script src=&#39;x&#39;&gt;&quot;&amp;\\x00"
        );
    }
}
