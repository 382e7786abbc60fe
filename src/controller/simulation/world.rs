//! What is true in a run: the API server's objects, Consul's key, and every tenure that Consul has
//! granted. Each write is judged here as it lands.

use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use serde_json::Value;
use testbed::fake_api::{Answer, FakeApi, Target};

use super::{CLAIM, KEY, SERVICE, name_of, text, wall};
use crate::{
    clock::{Clock, Instant},
    consul::{Consul, fake::FakeConsul},
    election::{SLICE_TOKEN_ANNOTATION, label, token_annotation},
    names::{Key, SessionId},
};

/// Shared by everything in a run.
pub(super) type Shared = Arc<Mutex<World>>;

pub(super) struct World {
    pub(super) api: FakeApi,
    pub(super) consul: FakeConsul,
    pub(super) clock: Clock,
    /// The controller that acts now; what an earlier one sent may be under way still.
    pub(super) generation: u64,
    /// Up to when, at most, any session may be relied on by whoever was told of it.
    pub(super) relied_until: Option<Instant>,
    /// When each version of the API server was made.
    times: Vec<(u64, Instant)>,
    tenures: Vec<Tenure>,
    newest_routed: u64,
    pub(super) broken: Option<String>,
    pub(super) seen: Seen,
    /// What happened, where somebody wants to read it.
    pub(super) diary: Option<Vec<String>>,
}

/// How much a run has seen, so that a test can tell that it saw something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) tenures: usize,
    pub(super) handed_over: usize,
    pub(super) lost: usize,
    pub(super) routed: usize,
    pub(super) deleted: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: Seen) {
        self.tenures += other.tenures;
        self.handed_over += other.handed_over;
        self.lost += other.lost;
        self.routed += other.routed;
        self.deleted += other.deleted;
    }
}

/// One unbroken holding of the key, as Consul has it.
struct Tenure {
    /// Its token; after an adoption also the one that it might have got then.
    tokens: Vec<u64>,
    pod: String,
    /// The pod's UID, once somebody named it together with the token.
    uid: Option<String>,
    session: SessionId,
    /// When it began, as the key tells.
    since: String,
    lock_index: u64,
    /// The controller that began it.
    generation: u64,
    ended: Option<End>,
    /// Its pod was deleted because it had lost the key.
    condemned: bool,
}

impl Tenure {
    fn is_same(&self, now: &Tenure) -> bool {
        (&self.session, &self.pod, &self.since) == (&now.session, &now.pod, &now.since)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InOrder,
    Lost,
}

/// What may have changed the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A transaction of the controller that acts now, about a tenure that it may rely on.
    Ours,
    /// Time, an operator, or what a controller sent before it died.
    Fate,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// A controller, of this generation.
    Controller(u64),
    /// Kubelets, users, other controllers.
    Other,
}

impl World {
    pub(super) fn new(api: FakeApi, consul: FakeConsul, clock: Clock) -> World {
        World {
            api,
            consul,
            clock,
            generation: 0,
            relied_until: None,
            times: Vec::new(),
            tenures: Vec::new(),
            newest_routed: 0,
            broken: None,
            seen: Seen::default(),
            diary: None,
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.clock.now();
        if let Some(diary) = &mut self.diary {
            diary.push(format!("{now:?} {}", line()));
        }
    }

    pub(super) fn breaks(&mut self, what: String) {
        let now = self.clock.now();
        self.note(|| format!("BROKEN {what}"));
        self.broken.get_or_insert(format!("at {now:?} {what}"));
    }

    /// An operator ends one of the sessions.
    pub(super) fn end_a_session(&mut self, random: &super::Random) {
        let sessions = self.consul.sessions();
        if let Some(session) = sessions.get(super::pick(random, sessions.len().max(1))) {
            // The one in memory answers at once.
            let _ = self.consul.destroy_session(&session.id).now_or_never();
            self.look(Cause::Fate);
        }
    }

    /// The time of day, in whole seconds as Kubernetes keeps it.
    pub(super) fn wall(&self) -> String {
        wall(&self.clock)
    }

    /// When a version was made.
    pub(super) fn time_of(&self, version: u64) -> Instant {
        let at = self.times.partition_point(|(known, _)| *known < version);
        self.times.get(at).map_or_else(|| self.clock.now(), |(_, time)| *time)
    }

    /// A call of somebody other than the controller.
    pub(super) fn act(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        let target = Target::parse(path);
        self.call(method, &target, body.to_string().as_bytes(), Writer::Other)
    }

    /// A call, as it reaches the API server.
    pub(super) fn call(
        &mut self,
        method: &str,
        target: &Target,
        body: &[u8],
        by: Writer,
    ) -> Answer {
        self.look(Cause::Fate);
        let before = self.api.version();
        let slices_before = (target.plural == "endpointslices").then(|| self.endpoints());
        let pod = (method == "DELETE" && target.plural == "pods").then(|| self.pod(target));
        let answer = self.api.call(method, target, body);
        let version = self.api.version();
        if version != before {
            self.times.push((version, self.clock.now()));
        }
        if method != "GET" {
            self.note(|| {
                let what = target.name.as_deref().unwrap_or_default();
                let part = target.subresource.as_deref().unwrap_or_default();
                let body = String::from_utf8_lossy(body);
                let (plural, code) = (&target.plural, answer.code);
                format!("{by:?} {method} {plural}/{what} {part} -> {code} v{version} {body}")
            });
        }
        if version != before && answer.code < 300 {
            if let Some(before) = slices_before {
                self.judge_endpoints(&before);
            } else if target.plural == "pods" && by != Writer::Other {
                match pod.flatten() {
                    Some(pod) => self.judge_deletion(&pod),
                    None => self.judge_badge(&answer.body),
                }
            }
        }
        answer
    }

    fn pod(&self, target: &Target) -> Option<Arc<Value>> {
        let name = target.name.as_deref();
        self.api.all("pods").find(|pod| Some(name_of(pod)) == name).cloned()
    }

    /// All endpoints of the Service: slice, UID and name of the pod, token.
    pub(super) fn endpoints(&self) -> Vec<Routed> {
        let mut found = Vec::new();
        for slice in self.api.all("endpointslices") {
            if slice["metadata"]["labels"]["kubernetes.io/service-name"] != SERVICE {
                continue;
            }
            let token = text(&slice["metadata"]["annotations"][SLICE_TOKEN_ANNOTATION]);
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                found.push(Routed {
                    slice: name_of(slice).to_owned(),
                    pod: text(&endpoint["targetRef"]["name"]).to_owned(),
                    uid: text(&endpoint["targetRef"]["uid"]).to_owned(),
                    ready: endpoint["conditions"]["ready"] == true,
                    token: token.parse().ok(),
                });
            }
        }
        found
    }

    pub(super) fn claim(&self) -> Arc<Value> {
        let claim = self.api.all("consullocks").find(|claim| name_of(claim) == CLAIM);
        claim.cloned().expect("the claim is never deleted")
    }

    /// Pods with label or token of the claim.
    pub(super) fn badges(&self) -> Vec<Badge> {
        let (label, token) = (label(CLAIM), token_annotation(CLAIM));
        let badges = self.api.all("pods").filter_map(|pod| {
            let metadata = &pod["metadata"];
            let token = &metadata["annotations"][&token];
            let labelled = !metadata["labels"][&label].is_null();
            (labelled || !token.is_null()).then(|| Badge {
                pod: name_of(pod).to_owned(),
                labelled,
                token: text(token).parse().ok(),
            })
        });
        badges.collect()
    }

    /// Never more than one pod; and what is put in belongs to a tenure of that very pod.
    fn judge_endpoints(&mut self, before: &[Routed]) {
        let after = self.endpoints();
        let two_in_one = |one: &Routed| after.iter().filter(|o| o.slice == one.slice).count() > 1;
        if after.iter().any(|one| one.uid != after[0].uid) || after.iter().any(two_in_one) {
            self.breaks(format!("there is a second endpoint: {after:?}"));
        }
        for routed in after.iter().filter(|one| !before.contains(one)) {
            self.seen.routed += 1;
            let Some(token) = routed.token else {
                return self.breaks(format!("an endpoint has no token: {routed:?}"));
            };
            if token < self.newest_routed {
                let newest = self.newest_routed;
                self.breaks(format!("after token {newest} there is {routed:?}"));
            }
            self.newest_routed = self.newest_routed.max(token);
            self.judge_tenant(token, &routed.pod.clone(), &routed.uid.clone());
            let ended = self.tenure(token).and_then(|tenure| tenure.ended);
            if ended == Some(End::InOrder) {
                self.breaks(format!("{routed:?} comes after its tenure was given up"));
            }
        }
    }

    fn judge_badge(&mut self, pod: &Value) {
        let metadata = &pod["metadata"];
        if metadata["labels"][&label(CLAIM)].is_null() {
            return;
        }
        let token = text(&metadata["annotations"][&token_annotation(CLAIM)]).parse();
        match token {
            Ok(token) => {
                self.judge_tenant(token, name_of(pod), text(&metadata["uid"]));
                let ended = self.tenure(token).and_then(|tenure| tenure.ended);
                if ended == Some(End::InOrder) {
                    let pod = name_of(pod);
                    self.breaks(format!("{pod} is labelled with {token}, which was given up"));
                }
            }
            Err(_) => self.breaks(format!("{} has a label and no token", name_of(pod))),
        }
    }

    /// Whether Consul granted this token for this pod.
    fn judge_tenant(&mut self, token: u64, pod: &str, uid: &str) {
        let tenure = self.tenures.iter_mut().rev().find(|tenure| tenure.tokens.contains(&token));
        let granted = tenure.is_some_and(|tenure| {
            let known = tenure.uid.get_or_insert_with(|| uid.to_owned());
            tenure.pod == pod && known == uid
        });
        if !granted {
            self.breaks(format!("token {token} was never granted for {pod} ({uid})"));
        }
    }

    /// A pod is deleted only if it led and its tenure was lost.
    fn judge_deletion(&mut self, pod: &Value) {
        self.seen.deleted += 1;
        let (name, uid) = (name_of(pod), text(&pod["metadata"]["uid"]));
        let meant = |tenure: &&mut Tenure| {
            tenure.pod == name && tenure.uid.as_deref().is_none_or(|known| known == uid)
        };
        let mut tenures: Vec<&mut Tenure> = self.tenures.iter_mut().filter(meant).collect();
        let lost = tenures.iter().any(|tenure| tenure.ended == Some(End::Lost));
        let last = tenures.last_mut().filter(|last| last.ended.is_none());
        match last {
            _ if lost => {}
            // It may have been lost on its holder's own clock; then it cannot end in order.
            Some(last) => last.condemned = true,
            None => self.breaks(format!("{name}, which lost nothing, is deleted")),
        }
    }

    /// The tokens of the present tenure.
    pub(super) fn present(&self) -> &[u64] {
        let present = self.tenures.last().filter(|tenure| tenure.ended.is_none());
        present.map_or(&[], |tenure| &tenure.tokens)
    }

    fn tenure(&self, token: u64) -> Option<&Tenure> {
        self.tenures.iter().rev().find(|tenure| tenure.tokens.contains(&token))
    }

    /// What a controller is about to send: an endpoint only while its tenure may be relied on.
    pub(super) fn sends(&mut self, target: &Target, body: &Value) {
        self.look(Cause::Fate);
        let filled = body["endpoints"].as_array().is_some_and(|all| !all.is_empty());
        if target.plural != "endpointslices" || !filled {
            return;
        }
        let token = text(&body["metadata"]["annotations"][SLICE_TOKEN_ANNOTATION]);
        let token: u64 = token.parse().unwrap_or(0);
        let ended = self.tenure(token).map(|tenure| tenure.ended);
        let relied = self.relied_until.is_some_and(|until| self.clock.now() < until);
        if !relied || ended.is_none_or(|ended| ended == Some(End::InOrder)) {
            self.breaks(format!("token {token} is sent to a slice, but cannot be relied on"));
        }
    }

    /// Looks at the key, which `cause` may have changed.
    pub(super) fn look(&mut self, cause: Cause) {
        let held = self.consul.peek(&Key::new(KEY).expect("a good key"));
        let held = held.and_then(|pair| Some((pair.session.clone()?, pair)));
        let held = held.map(|(session, pair)| {
            let value: Value = serde_json::from_slice(&pair.value).unwrap_or_default();
            let (pod, since) = (text(&value["pod"]).to_owned(), text(&value["since"]).to_owned());
            let (tokens, lock_index) = (vec![pair.modify_index], pair.lock_index);
            let (uid, ended, condemned, generation) = (None, None, false, self.generation);
            Tenure { tokens, pod, uid, session, since, lock_index, generation, ended, condemned }
        });
        let present = self.tenures.last_mut().filter(|tenure| tenure.ended.is_none());
        let is_there = present.is_some();
        match (present, held) {
            (None, None) => {}
            (Some(tenure), Some(now)) if tenure.is_same(&now) => {
                if tenure.lock_index != now.lock_index {
                    // Adopted: given up and taken again in one commit. Its token stays, as far as
                    // it was recorded.
                    tenure.lock_index = now.lock_index;
                    tenure.tokens.extend(now.tokens);
                }
            }
            (_, held) => {
                if is_there {
                    self.ended(cause, held.as_ref().map(|tenure| &*tenure.pod));
                }
                if let Some(tenure) = held {
                    self.note(|| format!("tenure {:?} for {}", tenure.tokens, tenure.pod));
                    self.tenures.push(tenure);
                    self.seen.tenures += 1;
                }
            }
        }
    }

    /// The key goes on only when endpoint and label of its last leader are gone, unless to the same
    /// pod: a new controller that was told of no tenure begins one anew.
    fn ended(&mut self, cause: Cause, next: Option<&str>) {
        let status = &self.claim()["status"];
        let recorded: Option<u64> = text(&status["fencingToken"]).parse().ok();
        let Some(last) = self.tenures.last_mut() else { return };
        // Of a tenure that was not recorded a new controller learns by the key alone.
        let is_known = last.generation == self.generation
            || recorded.is_some_and(|token| last.tokens.contains(&token));
        let end = if cause == Cause::Ours && is_known { End::InOrder } else { End::Lost };
        last.ended = Some(end);
        let (tokens, pod, condemned) = (last.tokens.clone(), last.pod.clone(), last.condemned);
        self.note(|| format!("tenure {tokens:?} of {pod} ended: {end:?}"));
        if end == End::Lost {
            self.seen.lost += 1;
            return;
        }
        self.seen.handed_over += 1;
        let (endpoints, badges) = (self.endpoints(), self.badges());
        let moves = next != Some(&*pod);
        if moves && !endpoints.is_empty() {
            self.breaks(format!("the key moves from {pod} while there is {endpoints:?}"));
        }
        if moves && badges.iter().any(|badge| badge.pod == pod) {
            self.breaks(format!("the key moves from {pod} while there is {badges:?}"));
        }
        if condemned {
            self.breaks(format!("{pod} was deleted, and then gave the key up in order"));
        }
    }
}

/// An endpoint, as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Routed {
    pub(super) slice: String,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) ready: bool,
    pub(super) token: Option<u64>,
}

/// What a pod carries, as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Badge {
    pub(super) pod: String,
    pub(super) labelled: bool,
    pub(super) token: Option<u64>,
}
