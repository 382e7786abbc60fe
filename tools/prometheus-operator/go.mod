module consullock.dev/tools/prometheus-operator

go 1.26.0

// Nothing of it is built: its definitions of ServiceMonitor and PrometheusRule are files of the module.
require github.com/prometheus-operator/prometheus-operator v0.92.1
