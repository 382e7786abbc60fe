package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// amounts says how much a benchmark does.
type amounts struct {
	count   int           // repetitions, workers or locks
	span    time.Duration // of the whole, where time decides
	hold    time.Duration // of one tenure
	patient time.Duration // with locks that are not acquired
}

// stage is what all modes share: Consul, a folder of keys, the conversation
// with whoever measures.
type stage struct {
	client *api.Client
	prefix string
	amounts
	orders *bufio.Reader
	inside atomic.Int32
	twice  atomic.Int32
}

// bench measures one thing and prints it as a line of JSON. Between what is
// prepared and what is measured it says "ready" and waits for a line.
func bench(mode, prefix string, how amounts) error {
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return err
	}
	s := &stage{client: client, prefix: prefix, amounts: how, orders: bufio.NewReader(os.Stdin)}
	modes := map[string]func(*stage) (map[string]any, error){
		"acquire": acquires, "cycles": cycles, "handover": handovers,
		"waiters": waiters, "requeue": requeue, "many": many,
	}
	run, known := modes[mode]
	if !known {
		return fmt.Errorf("no such benchmark: %s", mode)
	}
	result, err := run(s)
	if err != nil {
		return err
	}
	result["overlaps"] = s.twice.Load()
	return s.say(result)
}

func (s *stage) say(result map[string]any) error {
	line, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return nil
}

// ready says that everything is prepared, and waits for the order to go on.
func (s *stage) ready() {
	fmt.Println("ready")
	_, _ = s.orders.ReadString('\n')
}

func (s *stage) lock(key string) (*api.Lock, error) {
	return s.client.LockKey(s.prefix + key)
}

// turn acquires, holds and releases once; it returns when it was acquired.
func (s *stage) turn(key string) (time.Time, error) {
	lock, err := s.lock(key)
	if err != nil {
		return time.Time{}, err
	}
	if _, err := lock.Lock(nil); err != nil {
		return time.Time{}, err
	}
	at := time.Now()
	if s.hold > 0 {
		if s.inside.Add(1) > 1 {
			s.twice.Add(1)
		}
		time.Sleep(s.hold)
		s.inside.Add(-1)
	}
	return at, lock.Unlock()
}

func acquires(s *stage) (map[string]any, error) {
	s.ready()
	var times []int64
	for range s.count {
		lock, err := s.lock("one")
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if _, err := lock.Lock(nil); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began).Microseconds())
		if err := lock.Unlock(); err != nil {
			return nil, err
		}
	}
	return map[string]any{"times_us": times}, nil
}

func cycles(s *stage) (map[string]any, error) {
	s.ready()
	var done atomic.Int64
	began := time.Now()
	err := s.all(s.count, func(worker int) error {
		for time.Since(began) < s.span {
			if _, err := s.turn(fmt.Sprintf("worker-%d", worker)); err != nil {
				return err
			}
			done.Add(1)
		}
		return nil
	})
	return map[string]any{"cycles": done.Load(), "seconds": time.Since(began).Seconds()}, err
}

func handovers(s *stage) (map[string]any, error) {
	holder, err := s.lock("one")
	if err != nil {
		return nil, err
	}
	if _, err := holder.Lock(nil); err != nil {
		return nil, err
	}
	s.ready()
	var times []int64
	for range s.count {
		next, err := s.lock("one")
		if err != nil {
			return nil, err
		}
		got := make(chan error, 1)
		var at time.Time
		go func() {
			_, err := next.Lock(nil)
			at = time.Now()
			got <- err
		}()
		time.Sleep(s.hold)
		began := time.Now()
		if err := holder.Unlock(); err != nil {
			return nil, err
		}
		if err := <-got; err != nil {
			return nil, err
		}
		times = append(times, at.Sub(began).Microseconds())
		holder = next
	}
	return map[string]any{"times_us": times}, holder.Unlock()
}

func waiters(s *stage) (map[string]any, error) {
	first, err := s.lock("one")
	if err != nil {
		return nil, err
	}
	if _, err := first.Lock(nil); err != nil {
		return nil, err
	}
	var mutex sync.Mutex
	var turns []time.Time
	end := make(chan error, 1)
	go func() {
		end <- s.all(s.count, func(int) error {
			at, err := s.turn("one")
			mutex.Lock()
			turns = append(turns, at)
			mutex.Unlock()
			return err
		})
	}()
	time.Sleep(s.patient)
	s.ready()
	began := time.Now()
	if err := first.Unlock(); err != nil {
		return nil, err
	}
	err = <-end
	longest, last := 0.0, began
	for _, at := range turns {
		longest = max(longest, at.Sub(last).Seconds())
		last = at
	}
	return map[string]any{"seconds": time.Since(began).Seconds(), "stall": longest}, err
}

func requeue(s *stage) (map[string]any, error) {
	s.ready()
	began := time.Now()
	var turns, longest atomic.Int64
	err := s.all(s.count, func(int) error {
		for time.Since(began) < s.span {
			asked := time.Now()
			at, err := s.turn("one")
			if err != nil {
				return err
			}
			turns.Add(1)
			waited := at.Sub(asked).Microseconds()
			for known := longest.Load(); waited > known; known = longest.Load() {
				longest.CompareAndSwap(known, waited)
			}
		}
		return nil
	})
	return map[string]any{
		"cycles": turns.Load(), "seconds": time.Since(began).Seconds(),
		"longest": float64(longest.Load()) / 1e6,
	}, err
}

// many acquires many locks and says how many; later, how many are left.
func many(s *stage) (map[string]any, error) {
	s.ready()
	began := time.Now()
	var held atomic.Int64
	stop := make(chan struct{})
	time.AfterFunc(s.patient, func() { close(stop) })
	var tried sync.WaitGroup
	for number := range s.count {
		tried.Add(1)
		go func() {
			var once sync.Once
			defer once.Do(tried.Done)
			lock, err := s.lock(fmt.Sprintf("lock-%d", number))
			if err != nil {
				return
			}
			lost, err := lock.Lock(stop)
			if err != nil || lost == nil {
				return
			}
			held.Add(1)
			once.Do(tried.Done)
			<-lost
			held.Add(-1)
		}()
	}
	tried.Wait()
	err := s.say(map[string]any{"held": held.Load(), "seconds": time.Since(began).Seconds()})
	s.ready()
	return map[string]any{"held": held.Load(), "seconds": time.Since(began).Seconds()}, err
}

// all runs work so many times at once, and returns an error of one of them.
func (s *stage) all(count int, work func(int) error) error {
	results := make(chan error, count)
	for number := range count {
		go func() { results <- work(number) }()
	}
	var failed error
	for range count {
		if err := <-results; err != nil {
			failed = err
		}
	}
	return failed
}
