# What agents of the namespace `shop` in the cluster `eu-1` may do in Consul: hold the keys of this
# namespace, under sessions on its own node. Each namespace gets a policy of its own.

# Made by the first agent, unless the controller or somebody else has made it.
node "consul-lock-eu-1-shop" { policy = "write" }
session "consul-lock-eu-1-shop" { policy = "write" }

key_prefix "consul-lock/shop/" { policy = "write" }
