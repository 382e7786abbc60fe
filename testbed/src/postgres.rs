//! One PostgreSQL, for what the worked examples protect.
//!
//! Unlike the other servers it is not built: Debian's package `postgresql` has it. Whatever server
//! that package has started is left alone; ours has a folder, a port and a password of its own.
//!
//! # Not guaranteed
//! That anything is on disk: it runs without fsync.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::folder::Folder;
use crate::optional;
use crate::ports::Port;
use crate::process::{BedError, GRACE, Recipe, Server, with_free_ports};
use crate::run::run;
use crate::tools::on_path;

/// `required` makes [`Postgres::why_not`] a failure rather than a reason to skip; `skip` is such a
/// reason by itself.
const WISH: &str = "TESTBED_POSTGRES";

/// Where Debian has the programs, a folder for each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The administrator's name in the database.
const ADMINISTRATOR: &str = "postgres";

/// How long it may take to make its folder or to start, on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// A running PostgreSQL on 127.0.0.1. Dropping it ends it.
#[derive(Debug)]
pub struct Postgres {
    server: Server, // first: it ends before its folder goes
    programs: PathBuf,
    port: Port,
    password: String,
    _folder: Folder,
}

/// A database of one's own.
#[derive(Debug)]
pub struct Database {
    psql: PathBuf,
    env: Vec<(&'static str, String)>,
}

/// Whom it runs as: it refuses root.
struct Account {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Why none can run here; nothing if one can. With the variable `TESTBED_POSTGRES` set to
    /// `skip`, that is why.
    ///
    /// # Panics
    /// None can run here, and `TESTBED_POSTGRES` says `required`: skipping is not wanted.
    #[must_use]
    pub fn why_not() -> Option<String> {
        optional::why_not(WISH, programs())
    }

    /// Whether none can run here, so that a test has to be skipped; says so, and why.
    ///
    /// # Panics
    /// As [`Postgres::why_not`].
    #[must_use]
    pub fn skips() -> bool {
        optional::skips(Postgres::why_not())
    }

    /// Starts one, and waits until it takes connections.
    ///
    /// # Errors
    /// It did not come up; with the end of its log.
    pub fn start() -> Result<Postgres, BedError> {
        Postgres::start_also_on(&[])
    }

    /// The same, for clients of these addresses' subnets as well, such as the pods behind a
    /// [`crate::Cluster::gateway`].
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_also_on(addresses: &[Ipv4Addr]) -> Result<Postgres, BedError> {
        let programs = programs().map_err(BedError::Impossible)?;
        let folder = Folder::new("postgres")?;
        let account = Account::of_server()?;
        if let Some(account) = &account {
            chown(folder.path(), Some(account.uid), Some(account.gid))?;
        }
        let (data, password) = (folder.path().join("data"), random()?);
        let enter = entrance(folder.path(), account.as_ref());
        initialise(&programs, &folder, &data, &password, &enter)?;
        let mut hosts = OpenOptions::new().append(true).open(data.join("pg_hba.conf"))?;
        writeln!(hosts, "host all all samenet scram-sha-256")?;
        let (server, port) = with_free_ports(|| {
            let port = Port::reserve()?;
            let recipe = recipe(&programs, &folder, &data, &port, addresses).entering(&enter);
            let pid_file = data.join("postmaster.pid");
            Ok((Server::start(recipe, move || ready(&pid_file))?, port))
        })?;
        Ok(Postgres { server, programs, port, password, _folder: folder })
    }

    /// Makes a database.
    ///
    /// # Errors
    /// There is one of this name.
    pub fn database(&self, name: &str) -> Result<Database, BedError> {
        self.named("postgres").sql(&format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.named(name))
    }

    /// The process, to pause, kill and restart.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    fn named(&self, database: &str) -> Database {
        let env = vec![
            ("PGHOST", "127.0.0.1".to_owned()),
            ("PGPORT", self.port.number().to_string()),
            ("PGUSER", ADMINISTRATOR.to_owned()),
            ("PGPASSWORD", self.password.clone()),
            ("PGDATABASE", database.to_owned()),
        ];
        Database { psql: self.programs.join("psql"), env }
    }
}

impl Database {
    /// The variables by which every client finds it.
    #[must_use]
    pub fn env(&self) -> &[(&'static str, String)] {
        &self.env
    }

    /// The server's own command line.
    #[must_use]
    pub fn psql(&self) -> &Path {
        &self.psql
    }

    /// Runs statements in one go, and returns the rows, a line each and their columns parted by
    /// `|`.
    ///
    /// # Errors
    /// One of them failed; with what the server said.
    pub fn sql(&self, statements: &str) -> Result<String, BedError> {
        Ok(self.ask(&["-c".as_ref(), statements.as_ref()])?.trim_end().to_owned())
    }

    /// Runs a file of statements.
    ///
    /// # Errors
    /// As [`Database::sql`].
    pub fn file(&self, file: &Path) -> Result<(), BedError> {
        self.ask(&["-f".as_ref(), file.as_os_str()]).map(drop)
    }

    fn ask(&self, args: &[&std::ffi::OsStr]) -> Result<String, BedError> {
        let mut command = Command::new(&self.psql);
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]).args(args).envs(self.env.iter().cloned());
        run(&mut command, ALLOWED)
    }
}

impl Account {
    /// None if it can run as whoever we are. Of root's servers the owner is the package's user, or
    /// who owns nothing.
    fn of_server() -> Result<Option<Account>, BedError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let id = |flag: &str, user: &str| -> Result<u32, BedError> {
            let printed = run(Command::new("id").args([flag, user]), ALLOWED)?;
            printed.trim().parse().map_err(|_| BedError::Impossible(format!("id: {printed}")))
        };
        let user = if id("-u", "postgres").is_ok() { "postgres" } else { "nobody" };
        Ok(Some(Account { uid: id("-u", user)?, gid: id("-g", user)? }))
    }
}

/// Where the programs are; or what to install.
fn programs() -> Result<PathBuf, String> {
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres", "psql"].iter().all(|program| folder.join(program).is_file())
    };
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let newest = versions
        .map(|version| version.path().join("bin"))
        .filter(complete)
        .max_by_key(|folder| version_in(folder));
    let beside_initdb = || Some(on_path("initdb")?.parent()?.to_owned()).filter(complete);
    newest.or_else(beside_initdb).ok_or_else(|| {
        "there is no PostgreSQL: install Debian's package `postgresql`, or have `initdb` on PATH"
            .to_owned()
    })
}

/// The major version in a path like `/usr/lib/postgresql/15/bin`.
fn version_in(folder: &Path) -> u32 {
    let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// What stands before each of its programs: a folder that they can read, as they look for one
/// another from there, and the account.
fn entrance(folder: &Path, account: Option<&Account>) -> Vec<OsString> {
    let mut words = vec!["env".into(), format!("--chdir={}", folder.display()).into()];
    if let Some(Account { uid, gid }) = account {
        let own = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()];
        words.push("setpriv".into());
        words.extend(own.map(OsString::from));
    }
    words
}

/// Makes the data folder. Whoever has no password gets nowhere, also on this machine.
fn initialise(
    programs: &Path,
    folder: &Folder,
    data: &Path,
    password: &str,
    enter: &[OsString],
) -> Result<(), BedError> {
    let secret = folder.write("password", password)?;
    let mut command = Command::new(&enter[0]);
    command.args(&enter[1..]).arg(programs.join("initdb")).arg("--pgdata").arg(data);
    command.arg(format!("--pwfile={}", secret.display()));
    command.arg(format!("--username={ADMINISTRATOR}"));
    command.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    run(&mut command, ALLOWED).map(drop)
}

fn recipe(
    programs: &Path,
    folder: &Folder,
    data: &Path,
    port: &Port,
    also_on: &[Ipv4Addr],
) -> Recipe {
    let mut args: Vec<OsString> = vec!["-D".into(), data.into()];
    let port = port.number();
    let mut addresses = "127.0.0.1".to_owned();
    for address in also_on {
        addresses.push_str(&format!(",{address}"));
    }
    for setting in [
        &format!("listen_addresses={addresses}"),
        &format!("port={port}"),
        "unix_socket_directories=",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "shared_buffers=16MB",
    ] {
        args.extend(["-c".into(), setting.into()]);
    }
    Recipe {
        name: "postgres".to_owned(),
        program: programs.join("postgres"),
        args,
        env: vec![("LC_ALL".to_owned(), "C".to_owned())],
        log: folder.path().join("postgres.log"),
        allowed: ALLOWED,
        grace: GRACE,
    }
}

/// As its own `pg_ctl` tells it.
fn ready(pid_file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(pid_file).map_err(|error| error.to_string())?;
    match text.lines().last().map(str::trim) {
        Some("ready") => Ok(()),
        other => Err(format!("it is {other:?}")),
    }
}

/// A password.
fn random() -> io::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_debians_is_told_by_number() {
        let version = |path: &str| version_in(Path::new(path));
        assert!(version("/usr/lib/postgresql/15/bin") > version("/usr/lib/postgresql/9/bin"));
        assert_eq!(version("/usr/local/bin"), 0);
    }
}
