//! Ends what this process leaves behind.
//!
//! A test that panics in a thread, a static that is never dropped, Ctrl-C, SIGKILL: none of
//! them runs our destructors. So each process has one *reaper*, a small `sh` child that reads
//! from a pipe of ours which processes and folders we own. When the pipe is closed, for whatever
//! reason we ended, it terminates what is still registered, runs the scripts that clean up after
//! what is neither, and removes the folders. After a panic it leaves the logs (`*.log`) of those
//! folders behind.
//!
//! The reaper ignores the signals of a terminal and lives in a process group of its own.

use std::io::{self, Write};

use parking_lot::{Mutex, MutexGuard};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

/// Reads one order per line; at the end of the input it reaps. Process ids are those of process
/// groups; `kill` gets them without `--`, which dash does not know. A zombie counts as gone: where
/// process 1 does not collect orphans it stays for ever.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
newline='
'
pids= ; dirs= ; ends= ; keep_logs=
without() { # the lines of $1 without the line $2
    rest=; IFS=$newline
    for line in $1; do [ "$line" = "$2" ] || rest=$rest$newline$line; done
    unset IFS
    printf %s "$rest"
}
alive() {
    kill -0 "-$1" 2>/dev/null || return 1
    [ -r "/proc/$1/stat" ] || return 0
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
    case ${stat##*)} in ' Z'*) return 1 ;; esac
}
while IFS= read -r order; do
    what=${order#* }
    case $order in
    "+pid "*) pids=$pids$newline$what ;;
    "-pid "*) pids=$(without "$pids" "$what") ;;
    "+dir "*) dirs=$dirs$newline$what ;;
    "-dir "*) dirs=$(without "$dirs" "$what") ;;
    "+end "*) ends=$ends$newline$what ;;
    "-end "*) ends=$(without "$ends" "$what") ;;
    keep-logs) keep_logs=yes ;;
    esac
done
for pid in $pids; do
    kill -TERM "-$pid" 2>/dev/null
    kill -CONT "-$pid" 2>/dev/null
done
tries=0
while [ $tries -lt 30 ]; do
    left=
    for pid in $pids; do alive "$pid" && left=yes; done
    [ -n "$left" ] || break
    tries=$((tries + 1))
    sleep 0.1
done
for pid in $pids; do kill -KILL "-$pid" 2>/dev/null; done
IFS=$newline
for script in $ends; do sh "$script"; done
for dir in $dirs; do
    if [ -n "$keep_logs" ]; then
        find "$dir" ! -type d ! -name '*.log' -exec rm -f {} +
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null
    else
        rm -rf -- "$dir"
    fi
done
"#;

/// This process's reaper, and what it was told.
struct Reaper {
    process: Child,
    orders: ChildStdin,
    folders: Vec<PathBuf>,
}

impl Reaper {
    fn start() -> io::Result<Reaper> {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "testbed-reaper"])
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let orders = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        note_panics();
        // Not waited for but in `exit`: it ends after us.
        Ok(Reaper { process: child, orders, folders: Vec::new() })
    }

    fn tell(&mut self, order: &str) -> io::Result<()> {
        self.orders.write_all(format!("{order}\n").as_bytes())
    }
}

/// The reaper, started at its first use.
fn reaper() -> io::Result<MutexGuard<'static, Option<Reaper>>> {
    static REAPER: OnceLock<Mutex<Option<Reaper>>> = OnceLock::new();
    let mut reaper = REAPER.get_or_init(Mutex::default).lock();
    if reaper.is_none() {
        *reaper = Some(Reaper::start()?);
    }
    Ok(reaper)
}

fn with_reaper<T>(order: impl FnOnce(&mut Reaper) -> io::Result<T>) -> io::Result<T> {
    order(reaper()?.as_mut().ok_or(io::ErrorKind::NotFound)?)
}

/// Starts a process in a group of its own, which is ours to end. What is started in this way is
/// known to the reaper, or is not started: [`exit`] in another thread cannot come between.
///
/// # Errors
/// The process or the reaper could not be started, or the reaper could not be told.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    with_reaper(|reaper| {
        let mut child = command.process_group(0).spawn()?;
        match reaper.tell(&format!("+pid {}", child.id())) {
            Ok(()) => Ok(child),
            Err(error) => child.kill().and_then(|()| child.wait()).and(Err(error)),
        }
    })
}

/// The process group `pid` has ended.
pub fn forget_process(pid: u32) {
    // A reaper that is gone reaps nothing, so there is nothing to forget.
    let _ = with_reaper(|reaper| reaper.tell(&format!("-pid {pid}")));
}

/// The folder is ours to remove.
///
/// # Errors
/// The reaper could not be started or told.
pub fn owns_folder(folder: &Path) -> io::Result<()> {
    with_reaper(|reaper| {
        reaper.folders.push(folder.to_owned());
        reaper.tell(&format!("+dir {}", folder.display()))
    })
}

/// The folder is gone, or meant to stay.
pub fn forget_folder(folder: &Path) {
    let _ = with_reaper(|reaper| {
        reaper.folders.retain(|known| known != folder);
        reaper.tell(&format!("-dir {}", folder.display()))
    });
}

/// When the processes have ended, this script is to be run.
///
/// # Errors
/// The reaper could not be started or told.
pub fn owns_script(script: &Path) -> io::Result<()> {
    with_reaper(|reaper| reaper.tell(&format!("+end {}", script.display())))
}

/// The script's work is done.
pub fn forget_script(script: &Path) {
    let _ = with_reaper(|reaper| reaper.tell(&format!("-end {}", script.display())));
}

/// Ends this process, but all that it owns before: whoever sees it end finds nothing left. No
/// destructor runs, and nothing can be started any more meanwhile.
pub fn exit(code: i32) -> ! {
    let mut reaper = reaper();
    if let Some(Reaper { mut process, orders, .. }) =
        reaper.as_mut().ok().and_then(|reaper| reaper.take())
    {
        drop(orders);
        // It can hardly fail, and there is nobody left to care.
        let _ = process.wait();
    }
    // Still under the reaper's lock: another thread that starts something waits here until the end.
    std::process::exit(code)
}

/// Has the first panic of this process say where the logs of shared servers will be found.
fn note_panics() {
    let previous = std::panic::take_hook();
    let told = std::sync::Once::new();
    std::panic::set_hook(Box::new(move |panic| {
        previous(panic);
        told.call_once(|| {
            let _ = with_reaper(|reaper| {
                for folder in &reaper.folders {
                    crate::say(format!(
                        "what still runs at the end leaves its logs in {}",
                        folder.display()
                    ));
                }
                reaper.tell("keep-logs")
            });
        });
    }));
}
