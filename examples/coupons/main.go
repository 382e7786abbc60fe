// Issues a coupon to each customer who has none. One process at a time may do so, in whatever cluster,
// and whoever comes next goes on where it stopped:
//
//	consul-lock run --key=shop/coupons/spring -- coupons spring
//
// The database is where PGHOST, PGDATABASE and the like say. ISSUE is what issues a coupon to
// $CUSTOMER; SILENCE is after how many seconds without a sign of life another one is taken for dead.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: coupons CAMPAIGN")
	}
	token, err := strconv.ParseInt(os.Getenv("CONSUL_LOCK_TOKEN"), 10, 64)
	if err != nil {
		log.Fatal("no fencing token: run me under consul-lock run")
	}
	silence, err := strconv.ParseFloat(cmp.Or(os.Getenv("SILENCE"), "60"), 64)
	check(err)
	run := run{campaign: os.Args[1], token: token, owner: random()}
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)

	db := connect()
	for !run.is(db, `take_run($1, $2, $3, $4)`, run.token, run.owner, seconds(silence)) {
		fmt.Println("waiting for the owner")
		pause(stop, seconds(silence/10))
	}
	fmt.Println("began")
	alive, over := context.WithCancel(context.Background())
	go run.live(alive, seconds(silence/5))
	for stop.Err() == nil && run.issue(db) {
	}
	over()
	run.is(db, `let_go($1, $2)`, run.owner)
}

type run struct {
	campaign string
	token    int64
	owner    string // known to nobody but this process and the database
}

// issue issues the next coupon; false if there is none.
func (run *run) issue(db *pgx.Conn) bool {
	var customer *string
	check(db.QueryRow(context.Background(), `SELECT next_customer($1)`, run.campaign).Scan(&customer))
	if customer == nil {
		fmt.Println("done")
		return false
	}
	fmt.Println("issuing to", *customer)
	command := exec.Command("sh", "-c", cmp.Or(os.Getenv("ISSUE"), "sleep 1"))
	command.Env = append(os.Environ(), "CUSTOMER="+*customer)
	check(command.Run())
	if !run.is(db, `record_coupon($1, $2, $3, $4)`, run.token, run.owner, *customer) {
		log.Fatal("another one has taken over")
	}
	return true
}

// live gives signs of life, also while a coupon takes long.
func (run *run) live(alive context.Context, each time.Duration) {
	for db := connect(); run.is(db, `beat($1, $2)`, run.owner); {
		time.Sleep(each)
	}
	if alive.Err() == nil {
		log.Fatal("another one has taken over")
	}
}

// is calls a function of the database about this campaign.
func (run *run) is(db *pgx.Conn, call string, args ...any) (so bool) {
	args = append([]any{run.campaign}, args...)
	check(db.QueryRow(context.Background(), `SELECT `+call, args...).Scan(&so))
	return so
}

func connect() *pgx.Conn {
	db, err := pgx.Connect(context.Background(), "")
	check(err)
	return db
}

// random is a UUID that nobody can guess.
func random() string {
	bytes := make([]byte, 16)
	rand.Read(bytes)
	return fmt.Sprintf("%x", bytes)
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// pause waits, unless this process is told to stop.
func pause(stop context.Context, long time.Duration) {
	select {
	case <-stop.Done():
		os.Exit(1)
	case <-time.After(long):
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
