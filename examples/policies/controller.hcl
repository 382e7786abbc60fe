# What the controller of the cluster `eu-1` may do in Consul, with the key prefix `consul-lock`.

# The nodes that its sessions sit on: one for each namespace with a claim.
node_prefix "consul-lock-eu-1-" { policy = "write" }
session_prefix "consul-lock-eu-1-" { policy = "write" }

# To show who a stranger is.
session_prefix "" { policy = "read" }

# Claims' keys, and what the namespaces' annotation `consullock.dev/key-prefixes` allows beside them.
key_prefix "consul-lock/" { policy = "write" }
