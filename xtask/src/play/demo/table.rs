//! The demo's table: a line for each webhook.

use gitstafette_core::event::Facts;
use hyper::StatusCode;

use super::Shown;
use crate::text::{self, Colours};

/// The columns: a title, a width, and whether it holds numbers, which go to the right.
const COLUMNS: [(&str, usize, bool); 9] = [
    ("event", 26, false),
    ("repository", 22, false),
    ("format", 6, false),
    ("size", 7, true),
    ("answer", 6, true),
    ("ms", 5, true),
    ("body", 4, false),
    ("headers", 7, false),
    ("signed", 6, false),
];

/// The titles.
pub(super) fn titles(colours: Colours) -> String {
    let cells = COLUMNS.map(|(title, ..)| title.to_owned());
    colours.heading(&line(cells, |_, text| text))
}

/// The line of one webhook.
pub(super) fn row(facts: &Facts, shown: &Shown, colours: Colours) -> String {
    let ok = |ok: Option<bool>, yes: &str, no: &str| match ok {
        None => String::new(),
        Some(true) => yes.to_owned(),
        Some(false) => no.to_owned(),
    };
    let cells = [
        facts.event_type.to_string(),
        facts.repository_label().into_owned(),
        shown.format.to_owned(),
        text::bytes(shown.size),
        shown.answer.map(|answer| answer.as_u16().to_string()).unwrap_or_default(),
        shown.latency.map(text::millis).unwrap_or_default(),
        ok(shown.same_body, "same", "DIFF"),
        ok(shown.same_headers, "same", "DIFFER"),
        ok(shown.valid_signature, "valid", "WRONG"),
    ];
    let answer = shown.answer.map(|answer| answer == StatusCode::CREATED);
    let verdicts = [answer, None, shown.same_body, shown.same_headers, shown.valid_signature];
    line(cells, |at, text| match at.checked_sub(4).and_then(|at| verdicts[at]) {
        Some(true) => colours.good(&text),
        Some(false) => colours.bad(&text),
        None => text,
    })
}

/// Pads before it paints: what colours a text takes no room on the screen.
fn line(cells: [String; COLUMNS.len()], paint: impl Fn(usize, String) -> String) -> String {
    let cells = cells.into_iter().zip(COLUMNS).enumerate().map(|(at, (text, (_, width, right)))| {
        paint(at, if right { format!("{text:>width$}") } else { format!("{text:<width$}") })
    });
    cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_a_terminal() {
        let width: usize = COLUMNS.iter().map(|(_, width, _)| width + 1).sum();
        assert!(width - 1 <= 100, "{width}");
        for (title, width, _) in COLUMNS {
            assert!(title.len() <= width, "{title}");
        }
    }
}
