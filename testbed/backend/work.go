package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Where the agent of the pod is asked, and where it writes down how it stands.
const (
	agent    = "http://127.0.0.1:8700/leader"
	standing = "/run/lock/leader.json"
)

// Between two looks at whether it is our turn, and between two pieces of work.
const (
	look   = 50 * time.Millisecond
	stride = 10 * time.Millisecond
)

// What is of interest of what an agent tells.
type told struct {
	Token      string  `json:"token"`
	ValidUntil float64 `json:"valid_until"`
}

// work is an app beside an agent, and the most careless of them: once it was told that it leads, it
// works until somebody ends it, whatever becomes of the lock.
//
// Each piece of its work is a line in the file WITNESS: when it was done (/proc/uptime), the pod, the
// process, the fencing token, and until when the lock may be relied on, as it was told last.
//
// After SIGTERM it works on for as long as FAREWELL says, and for ever if that says nothing.
func work() error {
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	witness, err := os.OpenFile(os.Getenv("WITNESS"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	turn, err := await(terms)
	if err != nil {
		return err
	}
	ticks := time.NewTicker(stride)
	var end <-chan time.Time
	for {
		select {
		case <-terms:
			if farewell, err := time.ParseDuration(os.Getenv("FAREWELL")); err == nil {
				end = time.After(farewell)
			}
		case <-end:
			return nil
		case <-ticks.C:
			if now := read(); now.Token == turn.Token {
				turn.ValidUntil = now.ValidUntil
			}
			if err := note(witness, turn); err != nil {
				return err
			}
		}
	}
}

// await returns when the agent says that it is our turn.
func await(terms <-chan os.Signal) (told, error) {
	client := http.Client{Timeout: patience}
	for {
		if turn, ok := ask(client); ok {
			return turn, nil
		}
		select {
		case <-terms:
			return told{}, errors.New("ended before its turn")
		case <-time.After(look):
		}
	}
}

// ask asks the agent once. One that does not answer has not told us to work.
func ask(client http.Client) (told, bool) {
	reply, err := client.Get(agent)
	if err != nil {
		return told{}, false
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	var turn told
	if err == nil {
		err = json.Unmarshal(body, &turn)
	}
	return turn, err == nil && reply.StatusCode == http.StatusOK
}

// read reads how the agent stands, or stood when it was last able to write.
func read() told {
	var now told
	if content, err := os.ReadFile(standing); err == nil {
		// What cannot be read tells nothing.
		_ = json.Unmarshal(content, &now)
	}
	return now
}

func note(witness *os.File, turn told) error {
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	now, _, _ := strings.Cut(string(uptime), " ")
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(witness, "%s %s %d %s %.3f\n", now, pod, os.Getpid(), turn.Token, turn.ValidUntil)
	return err
}
