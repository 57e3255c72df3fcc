//! The KV cache as a pool of equal blocks (PagedAttention, Kwon et al., SOSP'23).
//!
//! Two kinds of blocks are held. *Private* ones (an unfinished block, generated tokens, a second
//! copy of a known prefix) belong to one sequence and are never looked up, so they are counted and
//! have no identity. *Shared* ones hold a full block of a prompt, are found by hash and counted by
//! reference; one nobody refers to stays cached until its space is needed, least recently released
//! first.
//!
//! Invariant: `private + shared <= capacity`, and `idle` counts the shared blocks in the LRU list.
//!
//! vLLM keeps freed blocks with and without a hash in one queue, so it may evict a cached block while
//! an empty one is free further back. Here empty blocks always go first.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::prompt::BlockHash;

/// Where a shared block is kept.
pub(super) type BlockId = u32;

const NONE: BlockId = BlockId::MAX;

#[derive(Debug)]
struct Shared {
    hash: BlockHash,
    references: u32,
    // Neighbours in the LRU list, while nobody refers to it.
    prev: BlockId,
    next: BlockId,
}

/// Block hashes are uniform already; hashing them again would only cost time.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Debug)]
pub(super) struct KvPool {
    capacity: u32,
    private: u32,
    idle: u32,
    blocks: Vec<Shared>,
    /// Slots of `blocks` that hold nothing.
    vacant: Vec<BlockId>,
    by_hash: HashMap<BlockHash, BlockId, BuildHasherDefault<AsIs>>,
    oldest: BlockId,
    newest: BlockId,
}

// === impl KvPool ===

impl KvPool {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            private: 0,
            idle: 0,
            blocks: Vec::new(),
            vacant: Vec::new(),
            by_hash: HashMap::default(),
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Blocks that sequences hold.
    pub(super) fn used(&self) -> u32 {
        self.private + self.shared() - self.idle
    }

    /// Blocks that can be had now, some of them by evicting cached ones.
    pub(super) fn available(&self) -> u32 {
        self.capacity - self.used()
    }

    /// Blocks nobody holds that can still be found by hash.
    pub(super) fn cached(&self) -> u32 {
        self.idle
    }

    /// How many leading blocks are cached, and how many of those nobody holds. Taking the latter
    /// uses up `available`.
    pub(super) fn longest_prefix(&self, hashes: &[BlockHash]) -> (u32, u32) {
        let mut found = 0;
        let mut idle = 0;
        for hash in hashes {
            let Some(id) = self.by_hash.get(hash) else {
                break;
            };
            found += 1;
            idle += u32::from(self.block(*id).references == 0);
        }
        (found, idle)
    }

    /// Takes a reference to a cached block. The caller saw it in [`Self::longest_prefix`] and took
    /// nothing else in between.
    pub(super) fn share(&mut self, hash: BlockHash) -> Option<BlockId> {
        let id = *self.by_hash.get(&hash)?;
        if self.block(id).references == 0 {
            self.unlink(id);
        }
        self.block_mut(id).references += 1;
        Some(id)
    }

    /// Takes `count` blocks without identity. The caller checked [`Self::available`].
    pub(super) fn take(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        let empty = self.capacity - self.private - self.shared();
        for _ in empty..count {
            self.evict_oldest();
        }
        self.private += count;
    }

    /// Makes one private block findable by its content. `None` when another block with this content
    /// is known already: then it stays private, as vLLM keeps duplicates rather than merging them.
    pub(super) fn publish(&mut self, hash: BlockHash) -> Option<BlockId> {
        if self.by_hash.contains_key(&hash) {
            return None;
        }
        let block = Shared {
            hash,
            references: 1,
            prev: NONE,
            next: NONE,
        };
        let id = if let Some(id) = self.vacant.pop() {
            *self.block_mut(id) = block;
            id
        } else {
            let id = BlockId::try_from(self.blocks.len()).unwrap_or(NONE);
            self.blocks.push(block);
            id
        };
        self.by_hash.insert(hash, id);
        self.private -= 1;
        Some(id)
    }

    /// Gives back private blocks.
    pub(super) fn give_back(&mut self, count: u32) {
        self.private -= count;
    }

    /// Drops references, last block first: a prefix is useful without its tail, not the reverse.
    pub(super) fn unshare(&mut self, ids: &[BlockId]) {
        for id in ids.iter().rev() {
            let block = self.block_mut(*id);
            block.references -= 1;
            if block.references == 0 {
                self.link_newest(*id);
            }
        }
    }

    /// Forgets every cached block nobody holds.
    pub(super) fn forget_idle(&mut self) {
        while self.oldest != NONE {
            self.evict_oldest();
        }
    }

    fn shared(&self) -> u32 {
        u32::try_from(self.blocks.len() - self.vacant.len()).unwrap_or(u32::MAX)
    }

    fn block(&self, id: BlockId) -> &Shared {
        &self.blocks[id as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Shared {
        &mut self.blocks[id as usize]
    }

    fn evict_oldest(&mut self) {
        let id = self.oldest;
        self.unlink(id);
        let hash = self.block(id).hash;
        self.by_hash.remove(&hash);
        self.vacant.push(id);
    }

    fn link_newest(&mut self, id: BlockId) {
        let before = self.newest;
        let block = self.block_mut(id);
        block.prev = before;
        block.next = NONE;
        if before == NONE {
            self.oldest = id;
        } else {
            self.block_mut(before).next = id;
        }
        self.newest = id;
        self.idle += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Shared { prev, next, .. } = *self.block(id);
        if prev == NONE {
            self.oldest = next;
        } else {
            self.block_mut(prev).next = next;
        }
        if next == NONE {
            self.newest = prev;
        } else {
            self.block_mut(next).prev = prev;
        }
        self.idle -= 1;
    }
}
