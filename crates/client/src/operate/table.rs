//! Tables for people.

use std::io::{self, Write};

use gitstafette_proto::convert::WireError;
use serde::Serialize;

use super::commands::Format;
use super::{Console, OperateError};
use crate::target::print::push_visible;

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    title: &'static str,
    is_number: bool,
    least: usize,
}

impl Column {
    /// A column of text.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, is_number: false, least: 0 }
    }

    /// A column of numbers, which stand at its right.
    pub(super) const fn number(title: &'static str) -> Self {
        Self { title, is_number: true, least: 0 }
    }

    /// At least so wide: for rows that come one by one.
    pub(super) const fn at_least(self, least: usize) -> Self {
        Self { least, ..self }
    }
}

/// A table that is printed bit by bit: its columns grow with what comes.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    columns: [Column; N],
    widths: [usize; N],
    has_titles: bool,
}

impl<const N: usize> Table<N> {
    /// A table of these columns, nothing of which is printed yet.
    pub(super) fn new(columns: [Column; N]) -> Self {
        Self { columns, widths: columns.map(|column| column.least), has_titles: false }
    }

    /// Prints rows; before the first one the titles.
    pub(super) fn print(&mut self, output: &mut dyn Write, rows: &[[String; N]]) -> io::Result<()> {
        let titles = (!self.has_titles && !rows.is_empty())
            .then(|| self.columns.map(|column| column.title.to_owned()));
        self.has_titles |= titles.is_some();
        let lines: Vec<_> =
            titles.iter().chain(rows).map(|row| row.each_ref().map(|cell| one_line(cell))).collect();
        for line in &lines {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        lines.iter().try_for_each(|line| writeln!(output, "{}", self.align(line)))
    }

    fn align(&self, line: &[String; N]) -> String {
        let mut text = String::new();
        for ((cell, width), column) in line.iter().zip(self.widths).zip(self.columns) {
            let padding = " ".repeat(width - cell.chars().count());
            let (before, after) =
                if column.is_number { (padding.as_str(), "") } else { ("", padding.as_str()) };
            text.extend([before, cell, after, "  "]);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Prints all that the server answered, as a table or as lines of JSON; what is to be said if it is nothing.
pub(super) fn print_all<W, T, R, const N: usize>(
    wire: Vec<W>,
    format: Format,
    (columns, row): ([Column; N], R),
    nothing: &str,
    console: &mut Console,
) -> Result<(), OperateError>
where
    T: TryFrom<W, Error = WireError> + Serialize,
    R: Fn(&T) -> [String; N],
{
    let all: Vec<T> = wire.into_iter().map(T::try_from).collect::<Result<_, _>>()?;
    if all.is_empty() {
        console.remark(nothing);
    }
    if format.json {
        all.iter().try_for_each(|one| console.json(one))?;
    } else {
        let rows: Vec<_> = all.iter().map(row).collect();
        Table::new(columns).print(&mut console.output, &rows)?;
    }
    Ok(())
}

/// Text that stays on its line.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    push_visible(&mut line, text, &[]);
    line
}

/// A number of bytes for people: `512 B`, `1.2 KiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let power = (1..=4).rev().find(|power| bytes >> (10 * power) > 0);
    let Some(power) = power else { return format!("{bytes} B") };
    // Tenths, cut off: what is shown is not more than there is.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_stay_on_their_lines() {
        let mut table = Table::new([Column::number("N"), Column::text("NAME"), Column::text("LAST")]);
        let mut output = Vec::new();
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        table.print(&mut output, &[]).unwrap();
        table.print(&mut output, &[row(["1", "a", ""]), row(["100", "Straße", "x\ny"])]).unwrap();
        table.print(&mut output, &[row(["2", "b", "z"])]).unwrap();
        let expected = "  N  NAME    LAST\n  1  a\n100  Straße  x\\u{a}y\n  2  b       z\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn sizes() {
        let shown = [0, 1023, 1024, 1_300_000, u64::MAX].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.2 MiB", "16777215.9 TiB"]);
    }
}
