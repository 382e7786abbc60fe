// Hands out numbers, each of them once: GET /next. It keeps the last one in memory, so only one may do
// so at a time. Whose turn it is the agent beside it tells: this program listens to its /events.
//
//	consul-lock agent --key=shop/numbers &
//	standby 127.0.0.1:8080 http://127.0.0.1:8700
//
// The database is where PGHOST, PGDATABASE and the like say.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// What the agent tells.
type standing struct {
	Leader     bool    `json:"leader"`
	Token      int64   `json:"token,string"`
	ValidUntil float64 `json:"valid_until"` // in seconds since the machine started
}

type numbers struct {
	sync.Mutex
	db    *pgx.Conn
	told  standing
	token int64 // of the tenure for which we know
	last  int64
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: standby ADDRESS AGENT")
	}
	db, err := pgx.Connect(context.Background(), "")
	if err != nil {
		log.Fatal(err)
	}
	n := &numbers{db: db}
	go n.listen(os.Args[2] + "/events")
	http.HandleFunc("GET /next", n.next)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}

// listen notes what the agent tells. While an agent is being restarted the last word counts, and that
// ends by itself.
func (n *numbers) listen(events string) {
	for ; ; time.Sleep(time.Second / 4) {
		stream, err := http.Get(events)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(stream.Body); lines.Scan(); {
			data, isData := strings.CutPrefix(lines.Text(), "data: ")
			if !isData {
				continue
			}
			told := standing{}
			if err := json.Unmarshal([]byte(data), &told); err != nil {
				log.Fatal(err)
			}
			n.Lock()
			n.told = told
			n.Unlock()
		}
		stream.Body.Close()
	}
}

// next hands out a number.
func (n *numbers) next(w http.ResponseWriter, r *http.Request) {
	n.Lock()
	defer n.Unlock()
	// An agent that is frozen tells nothing: its last word is no longer true at valid until.
	if !n.told.Leader || uptime() >= n.told.ValidUntil {
		http.Error(w, "not my turn", http.StatusServiceUnavailable)
		return
	}
	if err := n.take(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, n.last)
}

// take takes the next number, which nobody has before it is in the database.
func (n *numbers) take(ctx context.Context) error {
	if n.token != n.told.Token { // Others may have had turns. Reads by raising the fence.
		read := `UPDATE counter SET fence = $1 RETURNING last`
		if err := n.db.QueryRow(ctx, read, n.told.Token).Scan(&n.last); err != nil {
			return err
		}
		n.token = n.told.Token
	}
	// The token goes with the write, and the trigger compares it in this very statement.
	_, err := n.db.Exec(ctx, `UPDATE counter SET last = $1, fence = $2`, n.last+1, n.token)
	if err == nil {
		n.last++
	}
	return err
}

// uptime is how many seconds ago the machine started, suspended or not.
func uptime() float64 {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		log.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		log.Fatal(err)
	}
	return seconds
}
