module consullock.dev/testbed/backend

go 1.24
