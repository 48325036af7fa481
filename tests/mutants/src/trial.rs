//! Tries every slip with the tests that reach it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::process::{self, Ended, Usual};
use crate::scratch::{Numbered, Test};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A test, what it needs, and which slips it reaches.
pub struct Known {
    pub test: Test,
    usual: Usual,
    reached: Vec<u8>,
}

pub struct Trial {
    pub dir: PathBuf,
    pub seeds: String,
}

/// What became of a slip.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub name: String,
    /// `caught`, `hung`, `stands` or `unreached`.
    pub how: String,
    /// The test that failed, or what was tried.
    pub by: String,
}

impl Trial {
    /// Runs every test once without a slip. One that fails cannot be used, and is named.
    pub fn baseline(&self, tests: Vec<Test>, slips: usize) -> Outcome<Vec<Known>> {
        let map = self.dir.join("map");
        let mut known = Vec::new();
        for test in tests {
            std::fs::write(&map, vec![0; slips + 1])?;
            let path = map.to_str().ok_or("a directory with an odd name")?;
            let env = [
                ("AMPS_SLIP", "record"),
                ("AMPS_SLIP_MAP", path),
                ("AMPS_SEEDS", &self.seeds),
            ];
            let (ended, usual) = process::run(&test, &env, &self.dir.join("tmp/0"), None)?;
            if ended != Ended::Passed {
                eprintln!("fails without a slip, and is left out: {}", test.name);
                continue;
            }
            let reached = std::fs::read(&map)?;
            known.push(Known {
                test,
                usual,
                reached,
            });
        }
        let wall: Duration = known.iter().map(|k| k.usual.wall).sum();
        eprintln!("{} tests take {wall:.1?} one after the other", known.len());
        Ok(known)
    }

    /// Keeps what `baseline` found.
    pub fn save(&self, known: &[Known]) -> Outcome<()> {
        std::fs::create_dir_all(self.dir.join("reached"))?;
        let mut list = File::create(self.dir.join("tests.tsv"))?;
        for (i, k) in known.iter().enumerate() {
            std::fs::write(self.dir.join(format!("reached/{i}")), &k.reached)?;
            writeln!(
                list,
                "{}\t{}\t{}\t{}\t{}",
                k.test.name,
                k.test.binary.display(),
                k.test.package.display(),
                k.usual.wall.as_millis(),
                k.usual.cpu.as_millis(),
            )?;
        }
        Ok(())
    }

    pub fn load(&self) -> Outcome<Vec<Known>> {
        let mut known = Vec::new();
        let list = std::fs::read_to_string(self.dir.join("tests.tsv"))?;
        for (i, line) in list.lines().enumerate() {
            let [name, binary, package, wall, cpu] = fields(line)?;
            known.push(Known {
                test: Test {
                    name: name.into(),
                    binary: binary.into(),
                    package: package.into(),
                },
                usual: Usual {
                    wall: Duration::from_millis(wall.parse()?),
                    cpu: Duration::from_millis(cpu.parse()?),
                },
                reached: std::fs::read(self.dir.join(format!("reached/{i}")))?,
            });
        }
        Ok(known)
    }

    /// Tries the slips, except those that are in `results.tsv` already.
    pub fn run(
        &self,
        known: &[Known],
        slips: &[Numbered],
        jobs: usize,
        budget: u64,
    ) -> Outcome<()> {
        let done = self.verdicts("results.tsv")?;
        let hints = self.verdicts("earlier.tsv")?;
        // A slip that survived only a short look is tried again.
        let is_done = |v: &Verdict| !v.by.contains(" of ") || budget < u64::MAX;
        let mut todo: Vec<&Numbered> = slips
            .iter()
            .filter(|s| !done.get(&s.name).is_some_and(is_done))
            .collect();
        // Spread all over the code from the beginning.
        todo.sort_by_key(|s| s.number.wrapping_mul(2_654_435_761) & 0xffff_ffff);
        let todo = VecDeque::from(todo);
        let results = File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("results.tsv"))?;
        let (all, todo, results) = (todo.len(), Mutex::new(todo), Mutex::new(results));
        // Tests that have caught slips in the same function, or file, are tried first.
        let fell: Mutex<HashMap<(String, usize), u32>> = Mutex::default();
        {
            let work = |worker: usize| -> Result<(), String> {
                loop {
                    let (slip, left) = {
                        let mut todo = lock(&todo);
                        let Some(slip) = todo.pop_front() else {
                            return Ok(());
                        };
                        (slip, todo.len())
                    };
                    let hint = hints.get(&slip.name).map(|v| &*v.by);
                    let order = order(known, slip, hint, &lock(&fell));
                    let tmp = self.dir.join(format!("tmp/{worker}"));
                    let number = slip.number.to_string();
                    let env = [("AMPS_SLIP", &*number), ("AMPS_SEEDS", &self.seeds)];
                    let mut verdict = Verdict {
                        name: slip.name.clone(),
                        how: if order.is_empty() {
                            "unreached"
                        } else {
                            "stands"
                        }
                        .to_owned(),
                        by: format!("{} tests", order.len()),
                    };
                    let (mut spent, tests) = (0, order.len());
                    for (nth, i) in order.into_iter().enumerate() {
                        let k = &known[i];
                        if spent > budget {
                            verdict.by = format!("{nth} of {tests} tests");
                            break;
                        }
                        spent += k.usual.wall.as_millis() as u64;
                        let ended = process::run(&k.test, &env, &tmp, Some(k.usual));
                        verdict.how = match ended.map_err(|e| e.to_string())?.0 {
                            Ended::Passed => continue,
                            Ended::Failed => "caught",
                            Ended::Hung => "hung",
                        }
                        .to_owned();
                        verdict.by = k.test.name.clone();
                        for key in nearby(slip) {
                            *lock(&fell).entry((key, i)).or_default() += 1;
                        }
                        break;
                    }
                    let line = format!("{}\t{}\t{}\n", verdict.name, verdict.how, verdict.by);
                    lock(&results)
                        .write_all(line.as_bytes())
                        .map_err(|e| e.to_string())?;
                    if left % 100 == 0 || !matches!(&*verdict.how, "caught" | "hung") {
                        eprintln!(
                            "{left} of {all} left; {}: {}:{} {}",
                            verdict.how, slip.file, slip.line, slip.name
                        );
                    }
                }
            };
            let work = &work;
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..jobs).map(|w| scope.spawn(move || work(w))).collect();
                for worker in workers {
                    worker.join().map_err(|_| "a worker panicked")??;
                }
                Ok(())
            })
        }
    }

    /// What is known about slips, by name.
    pub fn verdicts(&self, file: &str) -> Outcome<HashMap<String, Verdict>> {
        let path = self.dir.join(file);
        let text = if path.exists() {
            std::fs::read_to_string(path)?
        } else {
            String::new()
        };
        let mut verdicts = HashMap::new();
        for line in text.lines() {
            let [name, how, by] = fields(line)?;
            let verdict = Verdict {
                name: name.into(),
                how: how.into(),
                by: by.into(),
            };
            verdicts.insert(verdict.name.clone(), verdict);
        }
        Ok(verdicts)
    }

    /// In a new copy everything is tried again; earlier results say which test to begin with.
    pub fn set_aside(&self) -> Outcome<()> {
        let mut all = self.verdicts("earlier.tsv")?;
        all.extend(self.verdicts("results.tsv")?);
        let lines = all
            .values()
            .map(|v| format!("{}\t{}\t{}\n", v.name, v.how, v.by));
        std::fs::write(self.dir.join("earlier.tsv"), lines.collect::<String>())?;
        std::fs::write(self.dir.join("results.tsv"), "")?;
        Ok(())
    }
}

fn nearby(slip: &Numbered) -> [String; 2] {
    let function = slip.name.split(": ").next().unwrap_or_default().to_owned();
    [function, slip.file.clone()]
}

/// Which tests reach a slip, and in which order they are tried.
fn order(
    known: &[Known],
    slip: &Numbered,
    hint: Option<&str>,
    fell: &HashMap<(String, usize), u32>,
) -> Vec<usize> {
    let [function, file] = nearby(slip);
    let weight = |i: usize, k: &Known| {
        let near = fell.get(&(function.clone(), i)).copied().unwrap_or(0);
        let far = fell.get(&(file.clone(), i)).copied().unwrap_or(0);
        let cost = k.usual.wall.as_millis() as u64 + 10;
        let first = hint == Some(&*k.test.name);
        (
            !first,
            cost * 100 / u64::from(1 + 20 * near.min(20) + far.min(20)),
        )
    };
    let mut order: Vec<_> = known.iter().enumerate().collect();
    order.retain(|(_, k)| k.reached.get(slip.number) == Some(&1));
    order.sort_by_key(|(i, k)| weight(*i, k));
    order.into_iter().map(|(i, _)| i).collect()
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fields of a line of one of our own files.
pub fn fields<const N: usize>(line: &str) -> Outcome<[&str; N]> {
    let fields: Vec<&str> = line.split('\t').collect();
    fields
        .try_into()
        .map_err(|_| format!("not {N} fields: {line}").into())
}
