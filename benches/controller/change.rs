//! The floor of a change of leader: a bare client that makes the calls which it needs, one after the
//! other, and nothing else.

use std::time::Duration;

use consul_lock::{
    consul::{Behavior, Consul, SessionRequest, Txn, TxnOp},
    lock::LOCK_FLAGS,
    names::{Key, NodeName, SessionName},
};
use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    Failure, Outcome,
    bed::{FLOOR, Field},
    latency::Times,
};

/// A death is reported, the endpoint goes, the label goes, the key moves, the label comes, the
/// endpoint comes.
pub(crate) async fn by_a_bare_client(field: &Field, count: usize) -> Outcome<Times> {
    let client = field.client.clone();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), FLOOR);
    accounts
        .create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}}))?)
        .await?;
    let pods = Api::<Pod>::namespaced(client.clone(), FLOOR);
    let slices = Api::<EndpointSlice>::namespaced(client, FLOOR);
    for name in ["old", "new"] {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": "none", "containers": [{"name": "app", "image": "none"}]},
        });
        pods.create(&PostParams::default(), &object(pod)?).await?;
    }
    let slice = json!({
        "metadata": {"name": "slice", "labels": {"kubernetes.io/service-name": "none"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}],
    });
    slices.create(&PostParams::default(), &object(slice)?).await?;
    let node = NodeName::new("consul-lock-change");
    field.consul.register_node(&node).await?;
    let session = field
        .consul
        .create_session(&SessionRequest {
            name: SessionName::new("change"),
            node,
            ttl: Duration::from_secs(3600),
            lock_delay: Duration::ZERO,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        })
        .await?;
    let key = Key::new("floor/change").map_err(|error| Failure::Odd(error.to_string()))?;
    let (value, flags) = (Vec::new(), LOCK_FLAGS);
    let lock = TxnOp::Lock { key: key.clone(), session: session.clone(), value, flags };
    let unlock = TxnOp::Unlock { key, session: session.clone(), value: Vec::new(), flags };
    committed(&field.consul.transaction(std::slice::from_ref(&lock)).await?)?;

    let params = PatchParams::default();
    let merge = |body: Value| Patch::Merge(body);
    let badge = |label: Value, token: Value| {
        merge(json!({"metadata": {"labels": {"badge": label}, "annotations": {"token": token}}}))
    };
    let mut times = Vec::new();
    for number in 0..count {
        field.pause(Duration::from_millis(50)).await;
        let began = field.clock.now();
        let report = json!({"status": {"message": number.to_string()}});
        pods.patch_status("old", &params, &merge(report)).await?;
        slices.patch("slice", &params, &merge(json!({"endpoints": []}))).await?;
        pods.patch("old", &params, &badge(Value::Null, Value::Null)).await?;
        committed(&field.consul.transaction(&[unlock.clone(), lock.clone()]).await?)?;
        pods.patch("new", &params, &badge(json!("holder"), json!(number.to_string()))).await?;
        let endpoint = json!({"endpoints": [{"addresses": ["10.1.2.4"]}]});
        slices.patch("slice", &params, &merge(endpoint)).await?;
        times.push(field.clock.now().since(began));
        pods.patch("old", &params, &badge(json!("holder"), json!("0"))).await?;
        pods.patch("new", &params, &badge(Value::Null, Value::Null)).await?;
    }
    field.consul.destroy_session(&session).await?;
    Ok(Times::new(times))
}

fn committed(txn: &Txn) -> Outcome<()> {
    match txn {
        Txn::Committed(_) => Ok(()),
        Txn::RolledBack(refused) => {
            Err(Failure::Odd(format!("the floor was refused: {refused:?}")))
        }
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Outcome<T> {
    serde_json::from_value(value).map_err(|error| Failure::Odd(error.to_string()))
}
