//! `testbed`: the test bed from a shell. `make` calls it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use testbed::tools::{Tool, ToolError};
use testbed::{
    BedError, Cluster, Folder, Helm, Layer, PRODUCT_IMAGE, ProductImage, Recipe, Server,
};

mod demo;
mod ready;

const USAGE: &str = "\
usage: testbed tools    find or build all that tests need here, and say where it is
       testbed servers  the same without what only a node needs that runs pods
       testbed demo     start the servers and the controller, and tell a story to watch
       testbed chart    write what is generated of the Helm chart
       testbed rights FOLDER
                        hold the chart's and the examples' RBAC rules against the audit logs there
       testbed render   print the chart's objects, for other tools to look at
       testbed image BINARY ARCHIVE
                        make the container image of this binary, as an OCI archive
       testbed ready ARCHIVE
                        say how long this image takes until it is ready, on a real node";

/// What the image may take on a node, at most.
const IMAGE_MAX_BYTES: u64 = 25_000_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["demo"] => demo::run(),
        ["tools"] => tools().map_err(|error| error.to_string()),
        ["servers"] => find(Tool::SERVERS).map_err(|error| error.to_string()),
        ["chart"] => testbed::chart::generate().map_err(|error| error.to_string()),
        ["rights", logs] => testbed::rights::compare(logs.as_ref()).map(|said| print!("{said}")),
        ["render"] => render().map_err(|error| error.to_string()),
        ["image", binary, archive] => image(binary.as_ref(), archive.as_ref()),
        ["ready", archive] => ready::measure(archive.as_ref()).map_err(|error| error.to_string()),
        // For the test of the reaper alone: ends badly while a server runs.
        ["end-badly", "cluster"] => end_badly_with_a_cluster().map_err(|error| error.to_string()),
        ["end-badly", how] => end_badly(how).map_err(|error| error.to_string()),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn find(tools: &[Tool]) -> Result<(), ToolError> {
    for tool in tools {
        println!("{:<24} {}", tool.name(), tool.path()?.display());
    }
    Ok(())
}

/// What only a node needs is left out where none can run.
fn tools() -> Result<(), ToolError> {
    find(Tool::SERVERS)?;
    find(Tool::TESTS)?;
    find(Tool::EXAMPLES)?;
    for definition in testbed::tools::prometheus_operator_definitions()? {
        println!("{:<24} {}", "definition", definition.display());
    }
    match Cluster::why_not() {
        None => find(Tool::NODE),
        Some(why) => {
            println!("left out, as no node can run here ({why}): kubelet, containerd and the like");
            Ok(())
        }
    }
}

/// Prints the chart's objects with everything that makes one, and an image as it should be named.
fn render() -> Result<(), BedError> {
    let values = json!({
        "image": {"digest": format!("sha256:{}", "0".repeat(64))},
        "admissionPolicy": {"enabled": true},
        "metrics": {
            "serviceMonitor": {"enabled": true},
            "prometheusRule": {"enabled": true},
            "dashboard": {"enabled": true},
        },
    });
    let args = ["template", "consul-lock", "--namespace", "consul-lock"];
    print!("{}", Helm::new(Path::new("/nowhere"))?.with_chart(&args, &values)?);
    Ok(())
}

/// Makes the image, and says how big it is.
fn image(binary: &Path, archive: &Path) -> Result<(), String> {
    let image = ProductImage::of(binary).map_err(|error| error.to_string())?;
    let write = || {
        std::fs::create_dir_all(archive.with_file_name(""))?;
        image.image.write(archive, Layer::Gzip)?;
        Ok::<_, BedError>((image.size()?, archive.metadata()?.len()))
    };
    let (size, sent) = write().map_err(|error| error.to_string())?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{}: {PRODUCT_IMAGE}, {:.1} MB on a node, {:.1} MB to send",
        archive.display(),
        megabytes(size),
        megabytes(sent)
    );
    println!("{}", image.contents()?);
    match size <= IMAGE_MAX_BYTES {
        true => Ok(()),
        false => Err(format!("that is more than {:.0} MB", megabytes(IMAGE_MAX_BYTES))),
    }
}

/// Starts a cluster, says where its parts are, and waits to be killed.
fn end_badly_with_a_cluster() -> Result<(), BedError> {
    let cluster = Cluster::start()?;
    let folder = cluster.kubelet().log().with_file_name("");
    println!("{} {}", cluster.kubelet().pid().unwrap_or_default(), folder.display());
    let _leaked = Box::leak(Box::new(cluster));
    loop {
        std::thread::park();
    }
}

/// Starts a server that does not listen to SIGTERM, says where it is, and then panics, or waits
/// to be killed.
fn end_badly(how: &str) -> Result<(), BedError> {
    let folder = Folder::new("end-badly")?;
    let recipe = Recipe {
        name: "stubborn".to_owned(),
        program: "sh".into(),
        args: ["-c", "trap '' TERM; echo alive; while :; do sleep 1; done"].map(Into::into).into(),
        log: folder.path().join("stubborn.log"),
        env: Vec::new(),
        allowed: Duration::from_secs(10),
        grace: Duration::ZERO,
    };
    let log = recipe.log.clone();
    let server = Server::start(recipe, move || match std::fs::read_to_string(&log) {
        Ok(text) if text.contains("alive") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    folder.write("data", "")?;
    println!("{} {}", server.pid().unwrap_or_default(), folder.path().display());
    // As a static would: no destructor runs.
    let _leaked = Box::leak(Box::new((server, folder)));
    assert!(how != "panic", "on purpose");
    loop {
        std::thread::park();
    }
}
