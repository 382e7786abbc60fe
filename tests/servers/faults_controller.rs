//! The controller when its replicas are killed, stopped or frozen.
