//! The charts of `docs/performance.md`: `cargo bench --bench curves -- [--quick] [--into DIR] [NAME …]`.
//! Their figures are printed; with a directory, each is drawn there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use amps_bench::{Chart, Failure, Plan};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Colours that people who see few of them can tell apart (Okabe and Ito's).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Round figures below and above all values: 1, 2 or 5 and zeros.
fn around(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    // A point on the frame would be half a point.
    let least = values.clone().fold(f64::INFINITY, f64::min) * 0.95;
    let most = values.fold(0.0, f64::max) * 1.05;
    let round = |value: f64| {
        let unit = 10f64.powf(value.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|times| times * unit)
    };
    let below = round(least).into_iter().rfind(|figure| *figure <= least);
    let above = round(most).into_iter().find(|figure| *figure >= most);
    below.unwrap_or(least)..above.unwrap_or(most)
}

/// Where lines help the eye: at powers of ten, and at 2 and 5 times those if there are few.
fn steps(range: &std::ops::Range<f64>) -> Vec<f64> {
    let few = range.end / range.start < 500.0;
    let times: &[f64] = if few { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let all = powers.flat_map(|power| times.iter().map(move |times| times * 10f64.powi(power)));
    let slack = range.start * 0.999..range.end * 1.001;
    all.filter(|step| slack.contains(step)).collect()
}

/// `1,000,000` is `1M`.
fn short(value: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= unit && value % (unit / 10.0) == 0.0 {
            return format!("{}{name}", value / unit);
        }
    }
    value.to_string()
}

/// `1,048,576` is `1 MiB`.
fn bytes(value: f64) -> String {
    for (shift, name) in [(20, " MiB"), (10, " KiB")] {
        if value >= f64::from(1 << shift) {
            return format!("{}{name}", value / f64::from(1 << shift));
        }
    }
    value.to_string()
}

fn draw(chart: &Chart, dir: &Path) -> Result<(), Failure> {
    let path = dir.join(format!("{}.svg", chart.name));
    let root = SVGBackend::new(&path, (720, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let mut places: Vec<f64> = points().map(|point| point.0).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let (first, last) = (places[0], places[places.len() - 1]);
    let room = (last / first).powf(0.04);
    let y = around(points().map(|point| point.1));
    let font = |size: i32| ("sans-serif", size).into_font().color(&INK);

    root.draw(&Text::new(chart.title, (70, 14), font(18)))?;
    let mut canvas = ChartBuilder::on(&root)
        .margin_top(44)
        // The names stand beside the ends of their lines.
        .margin_right(190)
        .margin_left(10)
        .margin_bottom(8)
        .x_label_area_size(48)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (first / room..last * room).log_scale(),
            y.clone().log_scale(),
        )?;
    canvas
        .configure_mesh()
        // Its ticks are at powers of ten, which are too few upwards, and not where something was measured.
        .disable_mesh()
        .x_label_formatter(&|_| String::new())
        .y_label_formatter(&|_| String::new())
        .set_all_tick_mark_size(0)
        .axis_style(INK)
        .x_desc(chart.x)
        .y_desc(chart.y)
        .axis_desc_style(font(14))
        .draw()?;

    let label = |value: f64| match chart.x.starts_with("bytes") {
        true => bytes(value),
        false => short(value),
    };
    for &place in &places {
        let (x, bottom) = canvas.backend_coord(&(place, y.start));
        let centred = font(13).pos(Pos::new(HPos::Center, VPos::Top));
        root.draw(&PathElement::new([(x, bottom), (x, bottom + 5)], INK))?;
        root.draw(&Text::new(label(place), (x, bottom + 9), centred))?;
    }

    for value in steps(&y) {
        let (left, height) = canvas.backend_coord(&(first / room, value));
        let (right, _) = canvas.backend_coord(&(last * room, value));
        let beside = font(13).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&PathElement::new([(left, height), (right, height)], GRID))?;
        root.draw(&Text::new(short(value), (left - 7, height), beside))?;
    }

    let mut names = Vec::new();
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        canvas.draw_series(LineSeries::new(
            line.points.iter().copied(),
            colour.stroke_width(2),
        ))?;
        canvas.draw_series(
            line.points
                .iter()
                .map(|point| Circle::new(*point, 4, colour.filled())),
        )?;
        if let Some(end) = line.points.last() {
            names.push((canvas.backend_coord(end), line.name, colour));
        }
    }
    // From the top down, and none over another.
    names.sort_by_key(|((_, y), ..)| *y);
    let mut free = 0;
    for ((x, y), name, colour) in names {
        let y = y.max(free);
        free = y + 18;
        let beside = ("sans-serif", 14).into_font().color(colour);
        let beside = beside.pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name, (x + 12, y), beside))?;
    }
    root.present()?;
    Ok(())
}

fn main() -> ExitCode {
    // Cargo passes `--bench`; anything else with a dash is ours.
    let mut arguments = std::env::args().skip(1);
    let (mut quick, mut into, mut only) = (false, None, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--into" => into = arguments.next().map(PathBuf::from),
            "--bench" => {}
            _ => only.push(argument),
        }
    }
    let dir = std::env::var_os("AMPS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let plan = Plan {
        dir,
        rounds: if quick { 1 } else { 7 },
        scale: if quick { 0.1 } else { 1.0 },
        only,
    };
    let mut drawn = Ok(());
    let measured = amps_bench::curves(&plan, &mut |chart| {
        println!("{}: {} by {}", chart.title, chart.y, chart.x);
        for line in &chart.lines {
            println!("  {}", line.name);
            for (x, y) in &line.points {
                println!("    {x:>10} {y:>14.1}");
            }
        }
        if let (Some(dir), Ok(())) = (&into, &drawn) {
            drawn = draw(chart, dir);
        }
    });
    match measured.and(drawn) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
