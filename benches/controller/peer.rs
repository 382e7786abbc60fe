//! The peer: client-go's leaderelection, on the same API server. See `benches/peers/leader-election`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use consul_lock::clock::{Clock, Instant};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use testbed::tools::Tool;

use crate::{
    Failure, Outcome,
    bed::{Bed, FLOOR, Field},
    table::{Row, Table, milliseconds},
};

const LEASE: &str = "peer";
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long its writes are counted.
const COUNTED: Duration = Duration::from_secs(30);

/// A contender's process. Killed when dropped.
struct Contender {
    process: Child,
    leads: mpsc::Receiver<Instant>,
}

impl Contender {
    fn start(bed: &Bed, number: usize) -> Outcome<Contender> {
        let identity = format!("contender-{number}");
        let args = ["-namespace", FLOOR, "-identity", &identity, LEASE];
        let mut command = Tool::LeaderElection.command(args)?;
        command.env("KUBECONFIG", bed.cluster.kubeconfig());
        command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
        let mut process = command.spawn()?;
        let output = process.stdout.take();
        let (told, leads) = mpsc::channel();
        thread::spawn(move || {
            let clock = Clock::boot();
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            for line in lines.map_while(Result::ok) {
                if line == "leading" && told.send(clock.now()).is_err() {
                    return;
                }
            }
        });
        Ok(Contender { process, leads })
    }

    fn wait_leads(&self) -> Outcome<Instant> {
        let told = tokio::task::block_in_place(|| self.leads.recv_timeout(PATIENCE));
        told.map_err(|_| Failure::InVain("client-go's contender to lead".to_owned()))
    }

    fn signal(&self, signal: &str) -> Outcome<()> {
        let pid = self.process.id().to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status()?;
        sent.success().then_some(()).ok_or_else(|| Failure::Odd(format!("kill {signal} {pid}")))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) async fn measure(
    bed: &Bed,
    field: &Field,
    count: usize,
    table: &mut Table,
) -> Outcome<()> {
    let mut leader = Contender::start(bed, 0)?;
    leader.wait_leads()?;
    let writes = count_writes(field).await?;
    let (mut crashes, mut ends) = (Vec::new(), Vec::new());
    for number in 0..2 * count {
        let heir = Contender::start(bed, number + 1)?;
        // Until it has looked at the Lease.
        field.pause(Duration::from_secs(3)).await;
        let (times, signal) = match number % 2 {
            0 => (&mut crashes, "-KILL"),
            _ => (&mut ends, "-TERM"),
        };
        let sent = field.clock.now();
        leader.signal(signal)?;
        times.push(heir.wait_leads()?.since(sent));
        leader = heir;
    }
    for (what, times) in [("crashes", &crashes), ("releases at SIGTERM", &ends)] {
        let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
        let row = Row::new(format!("client-go's leader {what} -> the next one leads: mean"));
        table.push(row.value(milliseconds(mean)));
    }
    let row = Row::new("client-go: writes of a Lease per hour, while nothing happens");
    table.push(row.value(format!("{:.0}", writes)));
    table.note(format!(
        "client-go's leaderelection with its usual 15 s, 10 s and 2 s, {count} crashes and {count} \
         releases. It elects processes, and neither fences them nor routes to them; its figures \
         count from the signal, ours from the kubelet's report."
    ));
    Ok(())
}

/// Writes of the Lease per hour, while its leader does nothing but lead.
async fn count_writes(field: &Field) -> Outcome<f64> {
    let leases: Api<Lease> = Api::namespaced(field.client.clone(), FLOOR);
    let version = async || {
        let lease = leases.get(LEASE).await?;
        Ok::<_, Failure>(lease.metadata.resource_version)
    };
    let began = field.clock.now();
    let (mut last, mut changes) = (version().await?, 0_u32);
    while field.clock.now().since(began) < COUNTED {
        field.pause(Duration::from_millis(200)).await;
        let now = version().await?;
        changes += u32::from(now != last);
        last = now;
    }
    Ok(f64::from(changes) / COUNTED.as_secs_f64() * 3600.0)
}
