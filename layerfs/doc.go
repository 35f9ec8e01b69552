// Package layerfs keeps container images on disk and gives each container a root filesystem of its own.
//
// A [Store] is an OCI image layout (index.json and blobs/sha256, which skopeo and crane read) with three directories
// beside it: layers, where each layer of an image is unpacked once; snapshots, the private copy-on-write part of each
// root filesystem; and tmp, where everything is made before one rename shows it. Many processes may open one store at
// once; there is no daemon and no database. Readers take no lock.
//
//	st, err := layerfs.OpenStore("/var/lib/coracle/store", nil)
//	layers, err := st.UnpackAll(ctx, specs, &layerfs.UnpackOptions{Parallelism: 3}) // lowest first, as in the manifest
//	snap, err := st.NewSnapshot(ctx, "web-1", layers, nil)
//	root, err := snap.Mount(ctx, nil)                                               // *os.File of a detached mount
//	...
//	err = snap.Remove(ctx)
//
// # Blobs and references
//
// [Store.WriteBlob] checks digest and size while it streams; a blob that exists is a blob that matched.
// [Store.ReadBlob] reads a small one, bounded and verified again. [Store.Tag], [Store.Resolve], [Store.Untag] and
// [Store.List] keep names in index.json.
//
// # Layers
//
// [Store.Unpack] fetches, verifies, decompresses and applies a layer in one pass and returns a [Layer], a plain value.
// A layer that needs nothing of the layers below is stored by its diffID and shared by every image that has it. One
// that does (it names a file whose directory it does not contain, links to a file of a lower layer, or passes through
// a symbolic link of one) is applied against its parents and stored by its chainID.
//
// [Store.Layers] finds the layers of an image that are all unpacked already; it is what the start of a container
// calls. [Store.LayerKeys] and [Store.RemoveLayer] are for whoever knows which layers are in use.
//
// # Snapshots
//
// [Snapshot.Mount] returns a detached mount: it is in no mount namespace and in no mount table, and it goes away when
// the last descriptor (or the namespace it was moved into by move_mount) does. [Driver] is what makes it: "overlay"
// by default, "copy" where overlay cannot be had, others by [RegisterDriver]. [Snapshot.Remove] hides the snapshot by
// one rename; its files are deleted after. [Store.RemoveSnapshot] also removes one that its maker did not live to
// complete.
//
// A directory snapshots/ID holds upper, work and a link, layers, which names a file under stacks: the keys of the
// layers, written once for each image.
//
// # Drivers
//
// "overlay" mounts the layers as they are. "copy" copies them, for a store on overlay itself or on a network filesystem;
// on xfs and btrfs the copies share their extents. A driver of one's own implements [Driver], whose documentation says
// what a layer looks like, and is registered by [RegisterDriver]; package layerfstest has the tests that it must pass.
//
// # Locks
//
// In this order: chain lock, diffID lock, index lock. While a diffID lock is held nothing but the layer's own stream is
// waited for; a chain lock is held while parents, which have shorter chains, are waited for.
//
// # Failure
//
// An error means that nothing was stored. [ErrCorrupt] says that content was not what its digest promised,
// [ErrInvalidArchive] that a layer's archive makes no sense, [*LimitError] that it exceeded one of [Limits], and
// [*OverlayError] that the kernel or the store's filesystem refuses overlay, with what to do.
package layerfs
