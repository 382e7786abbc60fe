//! How everything should be in the end: said anew here, from pods and key, without the code under
//! test.

use serde_json::Value;

use super::{
    KEY, cast, name_of, text,
    world::{Badge, World},
};
use crate::names::Key;

/// Whether everything is as it should be, now that nothing is wrong any more.
pub(super) fn settled(world: &World) -> Result<(), String> {
    let claim = world.claim();
    let pair = world.consul.peek(&Key::new(KEY).expect("a good key"));
    let held = pair.filter(|pair| pair.session.is_some());
    let paused = claim["spec"]["paused"] == true;
    let eligible = world.api.all("pods").filter(|pod| cast::is_eligible(world, pod)).count();
    match held {
        Some(_) if paused => Err("a paused claim holds its key".to_owned()),
        Some(pair) => {
            let value: Value = serde_json::from_slice(&pair.value).unwrap_or_default();
            held_by(world, &claim["status"], text(&value["pod"]))
        }
        None if !paused && eligible > 0 => Err(format!("{eligible} could hold the key, none does")),
        None => given_up(world, &claim["status"], if paused { "Paused" } else { "Waiting" }),
    }
}

fn held_by(world: &World, status: &Value, pod: &str) -> Result<(), String> {
    let says = |what: &str, is: &Value, should: &str| match text(is) == should {
        true => Ok(()),
        false => Err(format!("status: {what} is {is}, not {should}")),
    };
    says("phase", &status["phase"], "Held")?;
    let told = text(&status["fencingToken"]).parse().ok();
    let token = told.filter(|token| world.present().contains(token));
    let Some(token) = token else {
        return Err(format!("status: token {told:?}, not {:?}", world.present()));
    };
    says("holder.pod", &status["holder"]["pod"], pod)?;
    let leader = world.api.all("pods").find(|known| name_of(known) == pod);
    // Another pod of its name is somebody else.
    let leader = leader.filter(|known| known["metadata"]["uid"] == status["holder"]["uid"]);
    let (badges, endpoints) = (world.badges(), world.endpoints());
    let Some(leader) = leader else {
        let spec = &world.claim()["spec"];
        if spec["candidates"]["unreachableAfter"] != "never" {
            return Err(format!("{pod} is gone, and holds the key"));
        }
        return match badges.is_empty() && endpoints.is_empty() {
            true => Ok(()),
            false => Err(format!("{pod} is gone, and there is {badges:?} {endpoints:?}")),
        };
    };
    let badge = Badge { pod: pod.to_owned(), labelled: true, token: Some(token) };
    if badges != [badge] {
        return Err(format!("{pod} holds the key with token {token}; badges: {badges:?}"));
    }
    let slices = world.api.all("endpointslices").count();
    let ready = leader["status"]["conditions"][0]["status"] == "True";
    let right = endpoints.iter().all(|endpoint| {
        *endpoint.uid == leader["metadata"]["uid"]
            && endpoint.ready == ready
            && endpoint.token == Some(token)
    });
    let complete = match cast::is_deleting(leader) {
        true => endpoints.is_empty(),
        false => endpoints.len() == slices && slices > 0,
    };
    match right && complete {
        true => Ok(()),
        false => Err(format!("{pod} holds the key with token {token}; endpoints: {endpoints:?}")),
    }
}

fn given_up(world: &World, status: &Value, phase: &str) -> Result<(), String> {
    let (badges, endpoints) = (world.badges(), world.endpoints());
    if !badges.is_empty() || !endpoints.is_empty() {
        return Err(format!("nobody holds the key, and there is {badges:?} {endpoints:?}"));
    }
    match text(&status["phase"]) == phase && status["fencingToken"].is_null() {
        true => Ok(()),
        false => Err(format!("nobody holds the key; the status says {status}")),
    }
}
