//! Plain-text tables.

/// Aligned columns with titles and rules; `right` lists the columns to align right.
pub(crate) fn render<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    right: &[usize],
) -> String {
    let width = |i: usize| {
        rows.iter().map(|row| row[i].chars().count()).chain([head[i].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let cell = |i: usize| match right.contains(&i) {
            true => format!("{:>1$}", cells[i], widths[i]),
            false => format!("{:<1$}", cells[i], widths[i]),
        };
        (0..N).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rules = widths.map(|width| "-".repeat(width));
    let mut lines = vec![line(head), line(rules.each_ref().map(String::as_str))];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// A shape as `1x64x56x56`.
pub(crate) fn shape(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// A number with a comma after every three digits.
pub(crate) fn commas(n: u64) -> String {
    let digits = n.to_string();
    let comma = |(i, c): (usize, char)| {
        [(i > 0 && (digits.len() - i).is_multiple_of(3)).then_some(','), Some(c)]
    };
    digits.chars().enumerate().flat_map(comma).flatten().collect()
}

/// [`commas`] for a table cell: empty for 0.
pub(crate) fn count(n: u64) -> String {
    if n == 0 { String::new() } else { commas(n) }
}
