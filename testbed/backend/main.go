// backend is what runs in the pods of the test bed. It needs nothing but the
// kernel, so that an image of it is this one file.
//
//	backend serve      answer HTTP on :8080 until SIGTERM
//	backend get URL    make one request within two seconds and print the answer
//	backend pause      do nothing but collect orphans, as a sandbox's first process
//	backend work       be an app beside an agent; see work.go
//
// What it serves:
//
//	GET  /             {"pod": "...", "token": "..."}: the variable POD_NAME and the
//	                   content of the file TOKEN_FILE, read anew each time
//	GET  /healthz      ok
//	POST /exit?code=3  ends the process at once with this code
//
// At SIGTERM it stops listening, lets running requests finish and exits with 0.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How long "get" gives a server, and a stopping server its requests.
const patience = 2 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "backend:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	case len(args) == 1 && args[0] == "pause":
		pause()
		return nil
	case len(args) == 1 && args[0] == "work":
		return work()
	}
	return errors.New("usage: backend serve | backend get URL | backend pause | backend work")
}

func serve() error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", answer)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("POST /exit", exit)
	server := &http.Server{Addr: ":8080", Handler: mux}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	fmt.Println("serving as", os.Getenv("POD_NAME"))

	select {
	case err := <-ended:
		return err
	case <-stop.Done():
	}
	fmt.Println("stopping")
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return server.Shutdown(limit)
}

// answer says who answers, and with which fencing token.
func answer(w http.ResponseWriter, _ *http.Request) {
	token, err := token()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"pod": os.Getenv("POD_NAME"), "token": token})
}

// token reads the fencing token; a file that is not there is no token.
func token() (string, error) {
	content, err := os.ReadFile(os.Getenv("TOKEN_FILE"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(content)), err
}

func exit(_ http.ResponseWriter, request *http.Request) {
	code, err := strconv.Atoi(request.URL.Query().Get("code"))
	if err != nil {
		code = 1
	}
	os.Exit(code)
}

func get(url string) error {
	client := http.Client{Timeout: patience}
	reply, err := client.Get(url)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		return err
	}
	fmt.Print(string(body))
	if reply.StatusCode != http.StatusOK {
		return errors.New(reply.Status)
	}
	return nil
}

// pause is the first process of its PID namespace: orphans become its children.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
