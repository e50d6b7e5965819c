//! Plots as SVG: both axes logarithmic, one line a variant, panels side by side.

use std::fmt::Write;

/// One set of axes.
pub(crate) struct Panel {
    /// Above it.
    pub(crate) title: String,
    /// What runs from left to right, and what from bottom to top.
    pub(crate) axes: (&'static str, &'static str),
    /// Name and points of each variant.
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart also by those who see no red or no green.
const COLOURS: [&str; 8] = [
    "#0072b2", "#56b4e9", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#555555", "#000000",
];

/// The text of an SVG file.
pub(crate) fn svg(panels: &[Panel]) -> String {
    let mut out = String::new();
    let width = WIDTH * panels.len() as f64;
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="11">
<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>"##
    );
    for (at, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, r#"<g transform="translate({} 0)">"#, WIDTH * at as f64);
        draw(&mut out, panel);
        let _ = writeln!(out, "</g>");
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, panel: &Panel) {
    let points = || panel.lines.iter().flat_map(|(_, points)| points.iter());
    let mut columns: Vec<f64> = points().map(|point| point.0).collect();
    columns.sort_by(f64::total_cmp);
    columns.dedup();
    let (first, last) = (
        columns.first().copied().unwrap_or(1.0),
        columns.last().copied().unwrap_or(10.0),
    );
    let low = points()
        .fold(f64::MAX, |low, point| low.min(point.1))
        .max(1e-9);
    let high = points().fold(low, |high, point| high.max(point.1));
    let (low, high) = (
        low.log10().floor(),
        high.log10().ceil().max(low.log10().floor() + 1.0),
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |value: f64| {
        let share = (value.ln() - first.ln()) / (last.ln() - first.ln()).max(1e-9);
        LEFT + (right - LEFT) * share
    };
    let y = |value: f64| bottom - (bottom - TOP) * (value.max(1e-9).log10() - low) / (high - low);
    let _ = writeln!(
        out,
        r##"<text x="{LEFT}" y="20" font-size="13">{}</text>
<text x="{}" y="{}" text-anchor="middle">{}</text>
<text transform="translate(16 {}) rotate(-90)" text-anchor="middle">{}</text>"##,
        panel.title,
        f64::midpoint(LEFT, right),
        HEIGHT - 14.0,
        panel.axes.0,
        f64::midpoint(TOP, bottom),
        panel.axes.1
    );
    let mut decade = low;
    while decade <= high + 0.5 {
        let value = 10f64.powf(decade);
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" y1="{0:.1}" x2="{right}" y2="{0:.1}" stroke="#dddddd"/>
<text x="{1}" y="{2:.1}" text-anchor="end">{value}</text>"##,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0
        );
        decade += 1.0;
    }
    for column in &columns {
        let _ = writeln!(
            out,
            r##"<line x1="{0:.1}" y1="{TOP}" x2="{0:.1}" y2="{bottom}" stroke="#eeeeee"/>
<text x="{0:.1}" y="{1}" text-anchor="middle">{column}</text>"##,
            x(*column),
            bottom + 16.0
        );
    }
    let mut last_label = f64::MIN;
    let mut ends: Vec<(usize, f64)> = panel
        .lines
        .iter()
        .enumerate()
        .filter_map(|(at, (_, points))| points.last().map(|point| (at, y(point.1))))
        .collect();
    ends.sort_by(|a, b| a.1.total_cmp(&b.1));
    for (at, end) in ends {
        let Some((name, points)) = panel.lines.get(at) else {
            continue;
        };
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
            .collect();
        let _ = writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            path.join(" ")
        );
        for point in points {
            let _ = writeln!(
                out,
                r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#,
                x(point.0),
                y(point.1)
            );
        }
        // Names stand below one another even where lines meet.
        last_label = (last_label + 13.0).max(end);
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{:.1}" fill="{colour}">{name}</text>"#,
            right + 8.0,
            last_label + 4.0
        );
    }
}
