// The Go program of the tests, built without libc: an HTTP client and server, and names by Go's own
// resolver.
//
//	net get URL...            each page: status, length, SHA-256
//	net many URL COUNT        COUNT pages at once, a connection each; how many came whole
//	net echo ADDRESS:PORT     64 KiB there and back, half-closed, and both ends' names
//	net serve ADDRESS:PORT    HTTP: / says the client's address, /large is 1 MiB, POST echoes
//	net lookup [-s SERVER] [-t] NAME...   the addresses of each name; - reads names from stdin
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const limit = 20 * time.Second

// reason is an error in words that do not depend on ports and addresses.
func reason(err error) string {
	var number syscall.Errno
	var name *net.DNSError
	switch {
	case errors.As(err, &name) && name.IsNotFound:
		return "no such name"
	case errors.As(err, &number):
		return fmt.Sprintf("errno %d", int(number))
	}
	return err.Error()
}

func get(client *http.Client, url string) string {
	answer, err := client.Get(url)
	if err != nil {
		return reason(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		return reason(err)
	}
	return fmt.Sprintf("%d %d %x", answer.StatusCode, len(page), sha256.Sum256(page))
}

func many(url string, count int) int64 {
	client := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	whole := get(client, url)
	var same int64
	var all sync.WaitGroup
	for range make([]struct{}, count) {
		all.Add(1)
		go func() {
			defer all.Done()
			if page := get(client, url); page == whole && strings.HasPrefix(page, "200 ") {
				atomic.AddInt64(&same, 1)
			}
		}()
	}
	all.Wait()
	return same
}

func echo(address string) string {
	sock, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return reason(err)
	}
	defer sock.Close()
	sock.SetDeadline(time.Now().Add(limit))
	data := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	go func() {
		sock.Write(data)
		sock.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(sock)
	if err != nil {
		return reason(err)
	}
	host, _, _ := net.SplitHostPort(sock.LocalAddr().String())
	return fmt.Sprintf("%v from %s to %s", bytes.Equal(back, data), host, sock.RemoteAddr())
}

func serve(address string) error {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if r.Method == "POST" {
			io.Copy(w, r.Body)
		} else {
			fmt.Fprintln(w, host)
		}
	})
	http.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 1<<20))
	})
	return http.ListenAndServe(address, nil)
}

func lookup(resolver *net.Resolver, name string) string {
	ctx, stop := context.WithTimeout(context.Background(), limit)
	defer stop()
	found, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return reason(err)
	}
	sort.Strings(found)
	return strings.Join(found, " ")
}

func names(words []string) {
	resolver, protocol := &net.Resolver{PreferGo: true}, ""
	dialer := net.Dialer{}
	for ; len(words) > 0; words = words[1:] {
		switch {
		case words[0] == "-t":
			protocol = "tcp"
		case words[0] == "-s":
			server := words[1]
			words = words[1:]
			resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				if protocol != "" {
					network = protocol
				}
				return dialer.DialContext(ctx, network, net.JoinHostPort(server, "53"))
			}
		case words[0] == "-":
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				fmt.Println(lookup(resolver, lines.Text()))
			}
		default:
			fmt.Println(lookup(resolver, words[0]))
		}
	}
}

func main() {
	words := os.Args[2:]
	switch os.Args[1] {
	case "get":
		client := &http.Client{Timeout: limit}
		for _, url := range words {
			fmt.Println(get(client, url))
		}
	case "many":
		count, _ := strconv.Atoi(words[1])
		fmt.Println(many(words[0], count))
	case "echo":
		fmt.Println(echo(words[0]))
	case "serve":
		fmt.Fprintln(os.Stderr, serve(words[0]))
		os.Exit(1)
	case "lookup":
		names(words)
	}
}
