// leader-election contends for a Lease with client-go's own leaderelection, as
// most controllers do, with the durations that they use: 15 s, 10 s, 2 s. It is
// the peer that our elections are measured against.
//
//	leader-election -namespace NAMESPACE -identity NAME LEASE
//
// It prints "leading" once it leads and "stopped" when it does not any more. At
// SIGTERM it releases the Lease. The cluster is found by KUBECONFIG.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func main() {
	namespace := flag.String("namespace", "default", "namespace of the Lease")
	identity := flag.String("identity", "", "name of this contender")
	flag.Parse()
	if flag.NArg() != 1 || *identity == "" {
		fmt.Fprintln(os.Stderr, "usage: leader-election -namespace NAMESPACE -identity NAME LEASE")
		os.Exit(2)
	}
	if err := contend(*namespace, flag.Arg(0), *identity); err != nil {
		fmt.Fprintln(os.Stderr, "leader-election:", err)
		os.Exit(1)
	}
}

func contend(namespace, lease, identity string) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: lease},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println("leading") },
			OnStoppedLeading: func() { fmt.Println("stopped") },
		},
	})
	if err != nil {
		return err
	}
	elector.Run(stop)
	return nil
}
