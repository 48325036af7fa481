//! A switchboard of slips: one build of the workspace's tests contains every small mistake that
//! this program can think of, and an environment variable chooses which one is made. Reports
//! which of them no test noticed. See `tests/MUTANTS.md`.

mod find;
mod process;
mod scratch;
mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;

use scratch::{Numbered, Scratch};
use trial::{Trial, fields};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
Usage: amps-mutants [OPTION…] prepare|run|report

  prepare   copies the workspace, writes the slips, builds the tests, runs each once
  run       tries every slip, and goes on where an earlier run stopped
  report    what stands, and how many fell

  --dir DIR       the copy and what is known of it  [default: target/mutants]
  --workspace DIR [default: .]
  --in PATH       a source file, or a directory with a slash at its end; repeatable
                  [default: what tests/MUTANTS.md is about]
  --skip TEXT     leaves out tests with this in their name; repeatable
  --seeds N       for tests that draw  [default: 200]
  --every K       tries every K-th slip only  [default: 1]
  --only TEXT     tries slips with this in their name only
  --standing      tries again only what stood, or what is new, and believes the rest
  --budget MS     leaves a slip standing after tests that usually take so long, for a first look
  --again         tries again only what stood
  --jobs N        [default: 2]
";

/// What is rewritten unless something else is named.
const PLACES: [&str; 25] = [
    "crates/amps-store/src/recover.rs",
    "crates/amps-store/src/recover/",
    "crates/amps-store/src/log.rs",
    "crates/amps-store/src/log/",
    "crates/amps-store/src/space.rs",
    "crates/amps-store/src/space/",
    "crates/amps-store/src/state.rs",
    "crates/amps-store/src/state/",
    "crates/amps-store/src/store.rs",
    "crates/amps-store/src/store/",
    "crates/amps-store/src/transfer/repair.rs",
    "crates/amps-store/src/open.rs",
    "crates/amps-store/src/open/",
    "crates/amps-delivery/src/delivery/",
    "crates/amps-delivery/src/engine.rs",
    "crates/amps-delivery/src/engine/",
    "crates/amps-client/src/amps.rs",
    "crates/amps-client/src/amps/",
    "crates/amps-client/src/session/",
    "crates/amps-client/src/driver.rs",
    "crates/amps-client/src/driver/",
    "crates/amps-client/src/receipt.rs",
    "crates/amps-client/src/failed.rs",
    "crates/amps-client/src/failed/",
    "crates/amps-client/src/shared.rs",
];

struct Options {
    dir: PathBuf,
    workspace: PathBuf,
    places: Vec<String>,
    skip: Vec<String>,
    seeds: String,
    every: usize,
    only: Option<String>,
    standing: bool,
    again: bool,
    jobs: usize,
    budget: u64,
    verb: String,
}

fn options() -> Outcome<Options> {
    let mut o = Options {
        dir: "target/mutants".into(),
        workspace: ".".into(),
        places: Vec::new(),
        // They look for bugs of their own, and would find the slip instead.
        skip: vec!["planted".into()],
        seeds: "200".into(),
        every: 1,
        only: None,
        standing: false,
        again: false,
        jobs: 2,
        budget: u64::MAX,
        verb: String::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match &*arg {
            "--dir" => o.dir = value()?.into(),
            "--workspace" => o.workspace = value()?.into(),
            "--in" => o.places.push(value()?),
            "--skip" => o.skip.push(value()?),
            "--seeds" => o.seeds = value()?,
            "--every" => o.every = value()?.parse()?,
            "--only" => o.only = Some(value()?),
            "--again" => o.again = true,
            "--standing" => o.standing = true,
            "--budget" => o.budget = value()?.parse()?,
            "--jobs" => o.jobs = value()?.parse()?,
            "prepare" | "run" | "report" if o.verb.is_empty() => o.verb = arg,
            _ => return Err(format!("not understood: {arg}\n\n{HELP}").into()),
        }
    }
    if o.verb.is_empty() || o.every == 0 || o.jobs == 0 {
        return Err(HELP.into());
    }
    if o.places.is_empty() {
        o.places = PLACES.map(str::to_owned).to_vec();
    }
    std::fs::create_dir_all(&o.dir)?;
    o.dir = o.dir.canonicalize()?;
    Ok(o)
}

fn main() -> Outcome<()> {
    let o = options()?;
    // Everything else on this machine comes first, and no slip may use up all of its memory.
    rustix::process::nice(19)?;
    let most = rustix::process::Rlimit {
        current: Some(4 << 30),
        maximum: Some(4 << 30),
    };
    rustix::process::setrlimit(rustix::process::Resource::Data, most)?;
    let trial = Trial {
        dir: o.dir.clone(),
        seeds: o.seeds.clone(),
    };
    match &*o.verb {
        "prepare" => prepare(&o, &trial),
        "run" => run(&o, &trial),
        _ => report(&o, &trial),
    }
}

fn prepare(o: &Options, trial: &Trial) -> Outcome<()> {
    let scratch = Scratch { dir: o.dir.clone() };
    trial.set_aside()?;
    let slips = scratch.prepare(&o.workspace, &o.places)?;
    let lines = slips
        .iter()
        .map(|s| format!("{}\t{}\t{}\t{}\n", s.number, s.file, s.line, s.name));
    std::fs::write(o.dir.join("slips.tsv"), lines.collect::<String>())?;
    let tests = scratch.build(&o.skip)?;
    let most = slips.iter().map(|s| s.number).max().unwrap_or(0);
    trial.save(&trial.baseline(tests, most)?)
}

fn slips(o: &Options) -> Outcome<Vec<Numbered>> {
    let mut slips = Vec::new();
    for line in std::fs::read_to_string(o.dir.join("slips.tsv"))?.lines() {
        let [number, file, at, name] = fields(line)?;
        slips.push(Numbered {
            number: number.parse()?,
            file: file.into(),
            line: at.parse()?,
            name: name.into(),
        });
    }
    Ok(slips)
}

fn run(o: &Options, trial: &Trial) -> Outcome<()> {
    let mut chosen = slips(o)?;
    let earlier = trial.verdicts("earlier.tsv")?;
    let fell = |name: &str| {
        earlier
            .get(name)
            .is_some_and(|v| v.how == "caught" || v.how == "hung")
    };
    chosen.retain(|s| {
        s.number % o.every == 0
            && o.only
                .as_ref()
                .is_none_or(|text| s.name.contains(text.as_str()))
            && !(o.standing && fell(&s.name))
            && (!o.again || earlier.contains_key(&s.name) && !fell(&s.name))
    });
    trial.run(&trial.load()?, &chosen, o.jobs, o.budget)?;
    report(o, trial)
}

fn report(o: &Options, trial: &Trial) -> Outcome<()> {
    let mut verdicts = trial.verdicts("earlier.tsv")?;
    let now = trial.verdicts("results.tsv")?;
    if !o.standing {
        verdicts.clear();
    }
    verdicts.extend(now);
    let mut sums: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    let slips = slips(o)?;
    for slip in &slips {
        let how = verdicts.get(&slip.name).map_or("untried", |v| &*v.how);
        let column = match how {
            "caught" => 0,
            "hung" => 1,
            "stands" => 2,
            "unreached" => 3,
            _ => 4,
        };
        for key in [&*slip.file, "all"] {
            sums.entry(key).or_default()[column] += 1;
        }
        if matches!(column, 2 | 3) {
            println!("{how}\t{}:{}\t{}", slip.file, slip.line, slip.name);
        }
    }
    println!("caught\thung\tstands\tunreached\tuntried\tfile");
    for (file, [caught, hung, stands, unreached, untried]) in sums {
        println!("{caught}\t{hung}\t{stands}\t{unreached}\t{untried}\t{file}");
    }
    Ok(())
}
