// bench/dtm/main.go -- DTM's side of `make bench MEASURES=saga_rival`: four participants behind HTTP, each with
// DTM's barrier and a one-row update in its own transaction, and a closed loop of sagas with DTM's own client. Built inside a copy
// of DTM's module, so that its go.mod and go.sum hold. Prints one JSON object.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/lithammer/shortuuid/v3"

	_ "github.com/lib/pq"
)

var services = []string{"PAYMENT", "RESERVATION", "QUEUE", "CONCERT"}

type order struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

func step(db *sql.DB, service string, sign int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var o order
		barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
		if err == nil {
			err = json.NewDecoder(r.Body).Decode(&o)
		}
		if err == nil {
			err = barrier.CallWithDB(db, func(tx *sql.Tx) error {
				_, err := tx.Exec("UPDATE bench.account SET n = n + $1, amount = amount + $2 WHERE service = $3 AND key = $4",
					sign, sign*o.Amount, service, o.Account)
				return err
			})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"dtm_result":"SUCCESS"}`))
	}
}

func serve(db *sql.DB) string {
	mux := http.NewServeMux()
	for _, s := range services {
		mux.HandleFunc("/"+s+"/do", step(db, s, 1))
		mux.HandleFunc("/"+s+"/undo", step(db, s, -1))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() { _ = http.Serve(l, mux) }()
	return "http://" + l.Addr().String()
}

func one(dtm, self string, accounts int) error {
	saga := dtmcli.NewSaga(dtm, shortuuid.New())
	o := &order{Account: "key-" + strconv.Itoa(rand.Intn(accounts)), Amount: 7}
	for _, s := range services {
		saga.Add(self+"/"+s+"/do", self+"/"+s+"/undo", o)
	}
	saga.WaitResult = true
	saga.RequestTimeout = 30
	return saga.Submit()
}

func main() {
	dtm := flag.String("dtm", "", "DTM's HTTP API")
	dsn := flag.String("conninfo", "", "the participants' database")
	flying := flag.Int("in-flight", 64, "sagas at a time")
	warm := flag.Float64("warm", 3, "seconds before the measure")
	seconds := flag.Float64("seconds", 15, "seconds of the measure")
	accounts := flag.Int("accounts", 10000, "rows that are updated")
	conns := flag.Int("connections", 50, "of the participants")
	flag.Parse()

	db, err := sql.Open("postgres", *dsn+" sslmode=disable")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	db.SetMaxOpenConns(*conns)
	db.SetMaxIdleConns(*conns)
	dtmcli.SetCurrentDBType("postgres")
	dtmcli.GetRestyClient2(30 * time.Second).SetTransport(&http.Transport{MaxIdleConnsPerHost: 1024, MaxIdleConns: 1024})
	self := serve(db)

	ctx, stop := context.WithCancel(context.Background())
	var started, ended, failed, counting int64
	var mutex sync.Mutex
	var took []float64
	var last atomic.Value
	var all sync.WaitGroup
	for i := 0; i < *flying; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for ctx.Err() == nil {
				atomic.AddInt64(&started, 1)
				t0 := time.Now()
				if err := one(*dtm, self, *accounts); err != nil {
					atomic.AddInt64(&failed, 1)
					last.Store(err.Error())
					continue
				}
				if atomic.LoadInt64(&counting) == 1 {
					mutex.Lock()
					took = append(took, float64(time.Since(t0).Microseconds())/1000)
					mutex.Unlock()
				}
				atomic.AddInt64(&ended, 1)
			}
		}()
	}
	time.Sleep(time.Duration(*warm * float64(time.Second)))
	atomic.StoreInt64(&counting, 1)
	before, t0 := atomic.LoadInt64(&ended), time.Now()
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	rate := float64(atomic.LoadInt64(&ended)-before) / time.Since(t0).Seconds()
	atomic.StoreInt64(&counting, 0)
	stop()
	all.Wait()
	sort.Float64s(took)
	at := func(q float64) float64 {
		if len(took) == 0 {
			return -1
		}
		return took[int(q*float64(len(took)-1))]
	}
	why, _ := last.Load().(string)
	_ = json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"started": started, "ended": ended, "failed": failed, "why": why, "sagas_per_second": rate,
		"p50_ms": at(0.5), "p99_ms": at(0.99),
	})
}
