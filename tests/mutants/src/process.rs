//! Runs one test in a process of its own, and stops it if it would run for ever.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::scratch::Test;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Passed,
    Failed,
    /// It was stopped.
    Hung,
}

/// What a test needs when nothing is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual {
    pub wall: Duration,
    pub cpu: Duration,
}

/// Processor time decides, since other programs may need the machine. A test whose threads all
/// sleep uses none, so it is limited by the clock.
pub fn run(
    test: &Test,
    env: &[(&str, &str)],
    tmp: &Path,
    usual: Option<Usual>,
) -> io::Result<(Ended, Usual)> {
    std::fs::create_dir_all(tmp)?;
    let (_, name) = test.name.split_once(' ').unwrap_or(("", &test.name));
    let began = Instant::now();
    let mut child = Command::new(&test.binary)
        .args(["--exact", name])
        .current_dir(&test.package)
        .env("CARGO_MANIFEST_DIR", &test.package)
        .env("TMPDIR", tmp)
        .env("RUST_BACKTRACE", "0")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let id = child.id();
    let usual = usual.unwrap_or(Usual {
        wall: Duration::from_secs(200),
        cpu: Duration::from_secs(400),
    });
    let most = Usual {
        wall: usual.wall * 20 + Duration::from_secs(60),
        cpu: usual.cpu * 6 + Duration::from_secs(3),
    };
    let idle_for = usual.wall * 3 + Duration::from_secs(5);
    let (mut used, mut asleep_since) = (Duration::ZERO, None);
    let ended = loop {
        let passed = began.elapsed();
        if let Some(status) = child.try_wait()? {
            break if status.success() {
                Ended::Passed
            } else {
                Ended::Failed
            };
        }
        let nap = (passed / 20).clamp(Duration::from_millis(1), Duration::from_millis(100));
        std::thread::sleep(nap);
        let (now, asleep) = load(id);
        let busy = !asleep || now > used + Duration::from_millis(20);
        used = used.max(now);
        asleep_since = if busy {
            None
        } else {
            asleep_since.or(Some(Instant::now()))
        };
        let idle = asleep_since.is_some_and(|since| since.elapsed() > idle_for);
        if used > most.cpu || passed > most.wall || idle {
            break Ended::Hung;
        }
    };
    let wall = began.elapsed();
    // With everything that it may have started.
    if let Some(group) = Pid::from_raw(id as i32) {
        let _gone_already = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    let _still_in_use = std::fs::remove_dir_all(tmp);
    Ok((ended, Usual { wall, cpu: used }))
}

/// Processor time of a process and of the children that it has waited for, and whether all its
/// threads sleep. A process that has ended counts for nothing.
fn load(id: u32) -> (Duration, bool) {
    let stat = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        fields.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let whole = stat(Path::new(&format!("/proc/{id}/stat")));
    let number = |i: usize| {
        whole
            .get(i)
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let ticks: u64 = (11..15).map(number).sum();
    let tasks = std::fs::read_dir(format!("/proc/{id}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    let asleep = tasks.all(|task| {
        stat(&task.path().join("stat"))
            .first()
            .is_some_and(|s| s == "S")
    });
    (Duration::from_millis(ticks * 10), asleep)
}
