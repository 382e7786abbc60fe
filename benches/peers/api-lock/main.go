// api-lock holds one key through Consul's own Go client, api.Lock, as any Go
// program would. It is the peer that our lock must get along with and is
// measured against.
//
//	api-lock [-ttl 15s] [-session-name NAME] KEY
//	api-lock -bench MODE [-count N] [-span 10s] [-hold 5ms] [-patience 1s] PREFIX
//
// It prints one line per event: "locked <unix nanoseconds>" once it holds the
// key, "lost" if the lock was lost, "unlocked" after it gave the key back.
// It holds until its standard input is closed. With -bench it measures; see
// bench.go. Consul is found by the usual
// environment variables (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, ...).
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/consul/api"
)

func main() {
	ttl := flag.String("ttl", api.DefaultLockSessionTTL, "TTL of the session")
	name := flag.String("session-name", api.DefaultLockSessionName, "name of the session")
	mode := flag.String("bench", "", "what to measure instead, with keys that begin with KEY")
	var how amounts
	flag.IntVar(&how.count, "count", 100, "bench: repetitions, workers or locks")
	flag.DurationVar(&how.span, "span", 10*time.Second, "bench: how long, where time decides")
	flag.DurationVar(&how.hold, "hold", 0, "bench: how long a lock is held")
	flag.DurationVar(&how.patient, "patience", time.Second, "bench: until everybody waits")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: api-lock [-ttl 15s] [-session-name NAME] KEY")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	var err error
	if *mode != "" {
		err = bench(*mode, flag.Arg(0), how)
	} else {
		err = hold(flag.Arg(0), *ttl, *name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "api-lock:", err)
		os.Exit(1)
	}
}

// hold locks the key, says so, and keeps it until standard input ends or the
// lock is lost.
func hold(key, ttl, name string) error {
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return err
	}
	lock, err := client.LockOpts(&api.LockOptions{Key: key, SessionTTL: ttl, SessionName: name})
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()

	lost, err := lock.Lock(stop)
	if err != nil {
		return fmt.Errorf("cannot lock %s: %w", key, err)
	}
	if lost == nil { // asked to stop while still waiting
		return nil
	}
	fmt.Println("locked", time.Now().UnixNano())

	select {
	case <-lost:
		fmt.Println("lost")
		// Unlock ends the session's renewal; that it no longer holds the key is known.
		_ = lock.Unlock()
		return nil
	case <-stop:
	}
	if err := lock.Unlock(); err != nil {
		return fmt.Errorf("cannot unlock %s: %w", key, err)
	}
	fmt.Println("unlocked")
	return nil
}
