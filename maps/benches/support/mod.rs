//! Entries, figures and plots for the benches of maps.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers for printing"
)]

use std::fmt::Write as _;

/// A small generator that repeats itself from a seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Entry `i` as aliases and virtual users look.
pub fn entry(i: usize, generation: usize) -> (String, String) {
    let id = i.wrapping_mul(2_654_435_761) % 100_000_007;
    (
        format!("user.{i}.{id}"),
        format!("mailbox{id}+{generation}@host{}.example.test", i % 997),
    )
}

/// A key that is in no map of these entries, of the same shape.
pub fn absent_key(i: usize) -> String {
    let id = i.wrapping_mul(2_654_435_761) % 100_000_007;
    format!("user.{i}.{}", id + 1)
}

/// A number from the environment.
pub fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// One bar of a plot.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub is_ours: bool,
}

impl Bar {
    pub fn new(name: String, value: f64, is_ours: bool) -> Self {
        Self {
            name,
            value,
            is_ours,
        }
    }
}

/// Two groups of horizontal bars, each to its own scale from zero.
pub fn svg(title: &str, first: &[Bar], second_title: &str, second: &[Bar]) -> String {
    const ROW: usize = 22;
    let height = 90 + ROW * (first.len() + second.len());
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut y = 20;
    for (title, bars) in [(title, first), (second_title, second)] {
        let _ = writeln!(
            text,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{title}</text>"
        );
        y += 10;
        let top = bars.iter().map(|bar| bar.value).fold(1.0, f64::max);
        for bar in bars {
            let width = bar.value / top * 440.0;
            let colour = if bar.is_ours { "#2a6f97" } else { "#b0b7bd" };
            let _ = writeln!(
                text,
                "<text x=\"10\" y=\"{}\">{}</text><rect x=\"170\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{:.0}</text>",
                y + 14,
                bar.name,
                y + 3,
                176.0 + width,
                y + 14,
                bar.value
            );
            y += ROW;
        }
        y += 26;
    }
    text.push_str("</svg>\n");
    text
}
