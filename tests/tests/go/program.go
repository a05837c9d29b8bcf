// What Go has of HTTPS, in one program:
//
//	http ADDRESS CERT KEY        a server of the standard library
//	stack ADDRESS CERT KEY       one that reads to its stack, and has Read shake hands
//	get URL CA COUNT             a client
//
// Built outside of a module, which would mean the settings of an old Go.
//
//go:debug default=go1.27
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "http":
		serve(os.Args[2], os.Args[3], os.Args[4])
	case "stack":
		serveFromStack(os.Args[2], os.Args[3], os.Args[4])
	case "get":
		get(os.Args[2], os.Args[3], os.Args[4])
	}
}

// Answers 401 to POST and 200 to everything else.
func serve(address, cert, key string) {
	handler := http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		io.Copy(io.Discard, request.Body)
		if request.Method == "POST" {
			answer.WriteHeader(http.StatusUnauthorized)
		}
		io.WriteString(answer, "{}\n")
	})
	log.Fatal(http.ListenAndServeTLS(address, cert, key, handler))
}

func serveFromStack(address, cert, key string) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	listener, err := tls.Listen("tcp", address, config)
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go answerFromStack(connection.(*tls.Conn))
	}
}

// A goroutine begins with a small stack, which has to grow for the handshake within the first Read:
// then the array is somewhere else than it was.
func answerFromStack(connection *tls.Conn) {
	defer connection.Close()
	var buffer [1024]byte
	for {
		length, err := connection.Read(buffer[:])
		if err != nil {
			return
		}
		for range bytes.Count(buffer[:length], []byte("\r\n\r\n")) {
			var answer [64]byte
			length := copy(answer[:], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			if _, err := connection.Write(answer[:length]); err != nil {
				return
			}
		}
	}
}

func get(url, ca, count string) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	client := http.Client{Transport: transport}
	requests, err := strconv.Atoi(count)
	if err != nil {
		log.Fatal(err)
	}
	for range requests {
		answer, err := client.Get(url)
		if err != nil {
			log.Fatal(err)
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		fmt.Println(answer.Status)
	}
}
