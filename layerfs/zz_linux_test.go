package layerfs
import ("testing";"fmt";"time";"sort")
func BenchmarkZZ(b *testing.B) {
	s := openTest(b, nil)
	var archives [][]byte
	for i := range 5 {
		archives = append(archives, makeTar(b, ent{name: "./"}, ent{name: "d/"}, ent{name: fmt.Sprintf("d/f%d", i)}))
	}
	ls := unpackAll(b, s, archives...)
	var t [5][]float64
	for b.Loop() {
		t0 := time.Now()
		n, err := s.NewSnapshot(b.Context(), "bench", ls, &SnapshotOptions{Volatile: true})
		if err != nil { b.Fatal(err) }
		t1 := time.Now()
		f, err := n.Mount(b.Context(), nil)
		if err != nil { b.Fatal(err) }
		t2 := time.Now()
		f.Close()
		t3 := time.Now()
		n.Remove(b.Context())
		t4 := time.Now()
		s.waitTrash()
		t5 := time.Now()
		for i, d := range []time.Duration{t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), t4.Sub(t3), t5.Sub(t4)} { t[i] = append(t[i], float64(d)/1000) }
	}
	for i, n := range []string{"new", "mount", "close", "remove", "trash"} { sort.Float64s(t[i]); b.ReportMetric(t[i][len(t[i])/2], n+"-us") }
}
