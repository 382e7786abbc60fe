//! What Linux tells of a process: memory, processor time, connections.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;

use super::table::{Aim, Row, Table};

/// How often connections are counted.
const GLANCE: Duration = Duration::from_millis(20);
/// Connections to Consul, at most.
const CONNECTIONS: usize = 8;

/// Cores, memory, kernel.
#[must_use]
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split(':').nth(1)).unwrap_or_default();
        value.trim().to_owned()
    };
    let model = field(&read("/proc/cpuinfo"), "model name");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory = memory.split(' ').next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores ({model}), {} GiB, Linux {}", memory / 1024 / 1024, kernel.trim())
}

/// Memory in MB: resident now, and the most it ever was.
///
/// # Errors
/// There is no such process.
pub fn memory(pid: u32) -> io::Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e6
    };
    Ok((field("VmRSS:"), field("VmHWM:")))
}

/// Processor time so far, user and system.
///
/// # Errors
/// There is no such process.
pub fn processor_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime are fields 14 and 15 of the line; what is left begins with field 3.
    let ticks =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok());
    // The unit that Linux shows user space is 1/100 s on every architecture of ours.
    Ok(Duration::from_millis(10) * ticks.sum::<u32>())
}

/// Counts the established connections of one process to Consul, over and over in a thread of its
/// own.
pub struct Connections {
    shared: Arc<Shared>,
    phases: Mutex<Vec<(&'static str, usize)>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    pid: AtomicU32,
    most: AtomicUsize,
    stop: AtomicBool,
}

impl Connections {
    /// Of this process, to this Consul.
    #[must_use]
    pub fn watch(pid: u32, consul: SocketAddr) -> Connections {
        let shared = Arc::new(Shared {
            pid: AtomicU32::new(pid),
            most: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let watched = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !watched.stop.load(Ordering::Relaxed) {
                // A process that is just being killed cannot be read.
                let now = count(watched.pid.load(Ordering::Relaxed), consul.port()).unwrap_or(0);
                watched.most.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(GLANCE);
            }
        });
        Connections { shared, phases: Mutex::default(), thread: Some(thread) }
    }

    /// From now on another process counts.
    pub fn watch_instead(&self, pid: u32) {
        self.shared.pid.store(pid, Ordering::Relaxed);
    }

    /// The most since the last phase's end.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }

    /// Notes the most since the last phase's end.
    pub fn phase_over(&self, name: &'static str) {
        let most = self.shared.most.swap(0, Ordering::Relaxed);
        self.phases.lock().push((name, most));
    }

    /// The most at any time as a row, and by phase as a note.
    pub fn report(&self, table: &mut Table) {
        let phases = self.phases.lock();
        let most = phases.iter().map(|(_, most)| *most).max().unwrap_or(0);
        let row = Row::new("connections to Consul, the most at any time").value(most.to_string());
        table.push(row.aim(Aim::Wish, format!("at most {CONNECTIONS}"), most <= CONNECTIONS));
        let phases: Vec<_> = phases.iter().map(|(name, most)| format!("{name} {most}")).collect();
        table.note(format!(
            "Established connections to Consul, counted every {} ms, the most by phase: {}.",
            GLANCE.as_millis(),
            phases.join(", ")
        ));
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads files; there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}

fn count(pid: u32, port: u16) -> io::Result<usize> {
    let mut own = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed between two looks.
        if let Ok(target) = fs::read_link(entry?.path())
            && let Some(inode) = target.to_str().and_then(|text| text.strip_prefix("socket:["))
        {
            own.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    let remote = format!(":{port:04X}");
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let established = sockets.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, to, "01", _, _, _, _, _, inode, ..]
            if to.ends_with(&remote) && own.contains(inode))
    });
    Ok(established.count())
}
