// Package coracletest gives tests containers:
//
//	func TestOrders(t *testing.T) {
//		db := coracletest.Run(t, coracle.ContainerSpec{Image: "postgres:17"},
//			coracletest.ForLog("database system is ready to accept connections", 2),
//			coracletest.ForPort("5432/tcp"))
//		conn, err := db.Dial("tcp", "127.0.0.1:5432") // inside its network namespace: no published port, no clash
//		...
//	}
//
// [Run] names the container after the test, starts it, waits until it is ready and removes it when the test is over. If
// the test fails, the last lines of the container's log are among the test's output. It may be called from parallel tests
// and subtests, and from many test binaries at once.
//
// A container ends with the test binary, however that ends: with a panic, the -timeout of go test or a SIGKILL. What is
// left of it on disk then goes when the next test opens the engine; that also ends detached containers.
//
// What a container is waited for is a [Wait]: [ForLog], [ForPort], [ForHTTP], [ForExec], [ForFile], [ForHealthy], [ForExit],
// combined by [All], [Any] and [WithTimeout], or a [WaitFunc] of your own.
//
// Where containers cannot run, tests skip and say why; see [Available] and [RequireEnv].
package coracletest
