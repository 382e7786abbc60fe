// Sells an item piece by piece: reads the stock, has a piece packed, writes the stock. Nobody else
// may sell between the reading and the writing, so it runs under a lock:
//
//	consul-lock run --key=shop/stock/chair -- inventory chair 5
//
// The database is where PGHOST, PGDATABASE and the like say. PACK is what packs a piece.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strconv"

	"github.com/jackc/pgx/v5"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: inventory ITEM PIECES")
	}
	item := os.Args[1]
	wanted, err := strconv.Atoi(os.Args[2])
	check(err)
	token, err := strconv.ParseInt(os.Getenv("CONSUL_LOCK_TOKEN"), 10, 64)
	if err != nil {
		log.Fatal("no fencing token: run me under consul-lock run")
	}
	ctx := context.Background()
	db, err := pgx.Connect(ctx, "")
	check(err)
	for range wanted {
		sell(ctx, db, item, token)
	}
}

// sell sells one piece, or ends the program.
func sell(ctx context.Context, db *pgx.Conn, item string, token int64) {
	// Reads by raising the fence: from here on nobody with a smaller token can write. A plain
	// SELECT would leave room for one who was frozen, until our own first write.
	var pieces int64
	check(db.QueryRow(ctx,
		`UPDATE stock SET fence = $2 WHERE item = $1 RETURNING pieces`,
		item, token).Scan(&pieces))
	if pieces == 0 {
		fmt.Println("sold out")
		os.Exit(0)
	}

	fmt.Println("packing one of", pieces)
	check(exec.Command("sh", "-c", cmp.Or(os.Getenv("PACK"), "sleep 0.2")).Run())

	// The token goes with the write, and the trigger compares it in this very statement.
	_, err := db.Exec(ctx,
		`WITH sold AS (INSERT INTO sale (item, token) VALUES ($1, $2))
		 UPDATE stock SET pieces = $3, fence = $2 WHERE item = $1`,
		item, token, pieces-1)
	check(err)
	fmt.Println("sold one of", pieces)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
